"""Octets of mail as text: what a charset is called, and what mail programs mean by it.

Names are those of the web's table (WHATWG Encoding Standard, §4.2), since software writes mail as it writes pages: who
says gb2312 sends GBK, and who says ISO-8859-1 sends windows-1252. A character that is outside costs itself, and not the
text.
"""

from __future__ import annotations

import codecs
from typing import Final

import webencodings

_WESTERN: Final = "cp1252"  # ASCII and Latin-1 in that table; programs that send UTF-8 say so, too
_NOT_OF_THE_WEB: Final = "replacement"  # what the table makes of ISO-2022-KR and others, which mail has
# Codecs that are no charsets of mail, and slow.
_NO_CHARSETS: Final = frozenset({"punycode", "idna", "unicode-escape", "raw-unicode-escape", "utf-7", "undefined"})


def text_of(octets: bytes, charset: str) -> str:
    """``octets`` as text; ``charset`` as a mail names it, or empty. Never raises."""
    name = _codec_of(charset)
    if name is None or (name == _WESTERN and not octets.isascii()):
        try:
            return octets.decode("utf-8")
        except UnicodeDecodeError:
            name = _WESTERN
    return octets.decode(name, "replace")


def _codec_of(charset: str) -> str | None:
    """The codec of a charset's name; None where there is no such charset."""
    known = webencodings.lookup(charset)
    if known is not None and known.name != _NOT_OF_THE_WEB:
        name: str = known.codec_info.name
        return name
    try:
        found = codecs.lookup(charset)
        "".encode(found.name)  # refuses codecs that make no text
    except (LookupError, TypeError, ValueError):
        return None
    return None if found.name.replace("_", "-") in _NO_CHARSETS else found.name
