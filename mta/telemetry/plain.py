"""Imported by a process that writes no tracebacks for a terminal, before anything that logs.

structlog loads rich wherever it finds it, with the highlighter of source text that rich brings along: a fifth of
the time in which a child starts, and some megabytes in each. What is None here counts as not installed.
"""

import sys

sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
