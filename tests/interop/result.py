"""What a run found, and the file that all runs together are kept in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).with_name("results.json")


def load() -> dict[str, Any]:
    """By the server's name: title, version, date, how, runs, habits."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def record(server: str, part: str, name: str, what: Any, **about: str) -> None:
    """Enters what was found under ``server``, ``part`` (``runs`` or ``habits``) and ``name``."""
    results = load()
    entry = results.setdefault(server, {})
    entry.update(about)
    entry.setdefault(part, {})[name] = what
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
