"""mta: an on-premise, high-throughput mail sending core on PostgreSQL.

The picture, the packages and what may import what stand in ``docs/architecture.md``.

Modules of the hot path may stand here twice, as source and compiled from it (``make compile``); the compiled one is
what runs then. With ``MTA_INTERPRETED=1`` in the environment the sources run: for a profile by function, or a doubt.
"""

import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader

__version__ = "0.1.0"

_HERE = os.path.dirname(__file__)


def _find_sources(path: str) -> FileFinder:
    if path != _HERE and not path.startswith(_HERE + os.sep):
        raise ImportError(path)
    return FileFinder(path, (SourceFileLoader, SOURCE_SUFFIXES))


_IS_INTERPRETED = os.environ.get("MTA_INTERPRETED") == "1"


def is_compiled() -> bool:
    """Whether the hot path runs compiled in this process."""
    return not _IS_INTERPRETED and any("__mypyc." in name for name in os.listdir(_HERE))


if _IS_INTERPRETED:
    sys.path_hooks.insert(0, _find_sources)
    sys.path_importer_cache.pop(_HERE, None)
