"""What the texts of a rules file describe by name, whether or not any rule makes use of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mta.settings.toml_source import TomlSource

_KINDS: Final = ("provider", "automation")


def named_tables(texts: Mapping[str, str], directory: Path = Path()) -> dict[str, str]:
    """``provider:NAME`` and ``automation:NAME`` -> "file:line", of texts that were found to be good.

    ``directory``: where the texts were read from.
    """
    found: dict[str, str] = {}
    for name, text in texts.items():
        source = TomlSource(text, str(directory / name))
        for kind in _KINDS:
            for number, table in enumerate(source.table.get(kind, [])):
                found[f"{kind}:{table['name']}"] = source.where((kind, number))
    return found
