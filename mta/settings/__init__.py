"""What operators write, made into values that can be trusted.

In charge of reading ``mta.toml`` and ``mx-rules.toml``. Owns no state: each call reads a file once, as a whole,
and gives back a finished value or raises one ``BadInput`` whose place is ``file:line`` and whose
text names the key and what is allowed there.

Guarantees: nothing half-loaded; an unknown key is an error, never ignored; a rule that could never hold
is an error; a file that changes while it is read, is too large, or is no regular file is refused.
Never: watches files, keeps a connection, or decides what happens to running values; the daemon does that.
"""

from mta.settings.config import Settings, load_settings
from mta.settings.rules_file import load_rules

__all__ = ["Settings", "load_rules", "load_settings"]
