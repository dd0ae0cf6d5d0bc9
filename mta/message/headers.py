"""Header lines: RFC 5322 §2.2 with encoded words (RFC 2047) where text is not plain ASCII, folded.

Texts come in as what the reader shall see; lines come out as ASCII without the final CRLF. The only
CRLF inside a line are those of folds, each followed by a space. White space that a parser might drop
(at the ends, in runs) is kept inside encoded words, and so is text that only looks like an encoded word.
"""

from __future__ import annotations

import binascii
import re
from typing import Final, NamedTuple

from mta.message.fields import RenderError, percent_encoded, refuse_characters
from mta.model.address import Mailbox, parse_mailbox, shown
from mta.model.errors import BadInput
from mta.model.limits import HEADER_LINE_OCTETS_AIM, TEXT_LINE_OCTETS_MAX

# One header, folds included. Common receivers refuse or cut what is much longer.
HEADER_OCTETS_MAX: Final = 16 * 1024
DISPLAY_NAME_CHARS_MAX: Final = 1000
# A header's name leaves room for an encoded word of useful length beside it.
HEADER_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,49}")

_ENCODED_WORD_OCTETS_MAX: Final = 75  # RFC 2047 §2
_ENCODED_LINE_OCTETS_MAX: Final = 76  # RFC 2047 §2, a line that holds an encoded word
_ENCODED_WORD_FRAME: Final = len("=?utf-8?q??=")

_PARAMETER_LINE_OCTETS_MAX: Final = 60  # of a value; " filename*99*=;" stands beside it
# A value that stands in quotes as it is. Many readers do not put the pieces of RFC 2231 §3 together again, so a line
# may be longer than advised before a plain name is cut.
_QUOTED_VALUE_CHARS_MAX: Final = 78

_ATOMS: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++)*+")
# RFC 2047 §5 (3): what "Q" may leave as it is anywhere.
_Q_SAFE: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/"
_Q_ONE_OCTET: Final = _Q_SAFE + b" "
_Q_ONE_CHARACTER: Final = frozenset(_Q_ONE_OCTET.decode("ascii"))
_Q_OCTET: Final = tuple(
    "_" if octet == 0x20 else chr(octet) if octet in _Q_SAFE else f"={octet:02X}" for octet in range(256)
)

# Headers whose grammar has no place for encoded words; their text must be ASCII as it stands.
_STRUCTURED: Final = frozenset(
    ("auto-submitted", "feedback-id", "importance", "in-reply-to", "precedence", "references", "sensitivity")
)
_BRACKETS_OR_QUOTES: Final = re.compile(r'[<>"]')


class NamedMailbox(NamedTuple):
    """A mailbox as a header shows it: with the name of a person or a company, or an empty one."""

    name: str
    mailbox: Mailbox


def parse_named_mailbox(text: str, where: str) -> NamedMailbox:
    r"""``address``, ``<address>``, ``Name <address>`` or ``"Name" <address>``; ``\`` escapes inside the quotes.

    The name is plain text, not encoded words. Raises BadInput at ``where``.
    """
    refuse_characters(text, where, may_have_lines=False)
    text = text.strip(" ")
    if not text.endswith(">"):
        return NamedMailbox("", parse_mailbox(text, where))
    name, bracket, address = text[:-1].rpartition("<")
    if not bracket:
        raise BadInput(where, f"{shown(text)} has a > without a <")
    name = name.strip(" ")
    if len(name) >= 2 and name[0] == name[-1] == '"':
        name = name[1:-1]
        if re.fullmatch(r'(?:[^"\\]|\\.)*+', name) is None:
            raise BadInput(where, f'{shown(text)} has a " or \\ inside the quoted name that is not escaped by \\')
        name = re.sub(r"\\(.)", r"\1", name)
    elif (special := re.search(r'[<>()\[\]:;@\\,"]', name)) is not None:
        raise BadInput(where, f"{shown(text)} has {special[0]} in a name without quotes: put the name in quotes")
    return NamedMailbox(name, parse_mailbox(address, where))


def is_structured(name: str) -> bool:
    """Whether header ``name`` allows no encoded words (RFC 2369, RFC 2919, RFC 3834, RFC 5322 §3.6.4)."""
    lower = name.lower()
    return lower in _STRUCTURED or lower.startswith("list-")


def fault_in_structured_value(value: str) -> str | None:
    """Why ``value`` cannot stand in a structured header, or None: it could end the item it is put in."""
    if not value.isascii():
        return "is not ASCII, which this header allows no encoding for (use |url in a URL)"
    special = _BRACKETS_OR_QUOTES.search(value)
    return None if special is None else f"{special[0]} is not allowed in a value here (use |url in a URL)"


def header_line(name: str, text: str) -> str:
    """The line of an unstructured or structured header. Raises RenderError (``headers.name``) when it cannot be."""
    if len(name) + 2 + len(text) <= HEADER_LINE_OCTETS_AIM and is_literal(text):
        return f"{name}: {text}"
    if len(text) > HEADER_OCTETS_MAX:
        raise RenderError(f"headers.{name}", f"has {len(text)} characters, {HEADER_OCTETS_MAX} octets are allowed")
    if is_structured(name):
        line = _structured_line(name, text)
    elif not text:
        return f"{name}:"
    else:
        line = (_folded(name, text) if is_literal(text) else None) or (f"{name}: {_encoded_words(text, len(name) + 2)}")
    if len(line) > HEADER_OCTETS_MAX:
        raise RenderError(f"headers.{name}", f"has {len(line)} octets, {HEADER_OCTETS_MAX} are allowed")
    return line


def mailbox_text(name: str, address: str, column: int) -> str:
    """``address``, or ``name <address>`` on a line that has ``column`` octets already, folded but in the address.

    White space in ``name`` is trimmed and collapsed, so that an empty field leaves no mark.
    """
    is_short = column + len(name) + len(address) + 3 <= HEADER_LINE_OCTETS_AIM
    if is_short and _ATOMS.fullmatch(name) is not None and "=?" not in name:
        return f"{name} <{address}>"
    name = " ".join([word for word in name.split(" ") if word])
    if not name:
        return address
    if len(name) > DISPLAY_NAME_CHARS_MAX:
        raise RenderError("to_name", f"has {len(name)} characters, {DISPLAY_NAME_CHARS_MAX} are allowed")
    phrase = _phrase(name, column)
    last_line = len(phrase) - (phrase.rfind("\n") + 1) + (0 if "\n" in phrase else column)
    octets_max = _ENCODED_LINE_OCTETS_MAX if phrase.endswith("?=") else HEADER_LINE_OCTETS_AIM
    fold = " " if last_line + len(address) + 3 <= octets_max else "\r\n "
    return f"{phrase}{fold}<{address}>"


def parameter(name: str, value: str) -> str:
    """A MIME parameter with its semicolon, on lines of its own: quoted, or as RFC 2231 §3, §4 has it if it must be."""
    if _is_plain_value(value):
        return f";\r\n {name}={_quoted_string(value)}"
    octets = [percent_encoded(character) for character in value]
    lines: list[str] = []
    line = "utf-8''"
    for octet in octets:
        if len(line) + len(octet) > _PARAMETER_LINE_OCTETS_MAX:
            lines.append(line)
            line = ""
        line += octet
    lines.append(line)
    if len(lines) == 1:
        return f";\r\n {name}*={lines[0]}"
    return "".join([f";\r\n {name}*{number}*={line}" for number, line in enumerate(lines)])


def legacy_parameter(name: str, value: str) -> str:
    """A MIME parameter for readers that do not know RFC 2231: what is not plain ASCII as encoded words in quotes.

    RFC 2047 §5 has no place for these, but it is what such readers have always looked for. Readers that know the
    standard find the same value in another parameter.
    """
    if _is_plain_value(value):
        return parameter(name, value)
    return f';\r\n {name}="{_encoded_words(value, len(name) + 4)}"'


def _is_plain_value(value: str) -> bool:
    return value.isascii() and value.isprintable() and len(value) <= _QUOTED_VALUE_CHARS_MAX and "=?" not in value


def _quoted_string(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def is_literal(text: str) -> bool:
    """Whether unstructured ``text`` comes back from any parser as it is, so needs no encoding."""
    return (
        text.isascii()
        and text.isprintable()
        and "=?" not in text
        and "  " not in text
        and text != ""
        and text[0] != " "
        and text[-1] != " "
    )


def _structured_line(name: str, text: str) -> str:
    if not text.isascii():
        raise RenderError(f"headers.{name}", "is not ASCII, which this header allows no encoding for")
    text = " ".join([word for word in text.split(" ") if word])
    if not text:
        return f"{name}:"
    line = _folded(name, text)
    if line is None:
        raise RenderError(f"headers.{name}", f"cannot be folded into lines of {TEXT_LINE_OCTETS_MAX} octets")
    return line


def _folded(name: str, text: str) -> str | None:
    """``text``, words with one space between, folded at spaces; None when a word is too long for any line."""
    line = f"{name}:"
    lines: list[str] = []
    for word in text.split(" "):
        # The first word stays beside the name: a first line with nothing but the name confuses old parsers.
        if len(line) + 1 + len(word) > HEADER_LINE_OCTETS_AIM and (lines or len(line) > len(name) + 1):
            lines.append(line)
            line = ""
        line = f"{line} {word}"
        if len(line) > TEXT_LINE_OCTETS_MAX:
            return None
    lines.append(line)
    return "\r\n".join(lines)


def _phrase(name: str, column: int) -> str:
    """A display name (RFC 5322 §3.2.5): atoms, a quoted string, or encoded words when it is not ASCII or long."""
    if name.isascii() and name.isprintable() and "=?" not in name:
        literal = name if _ATOMS.fullmatch(name) is not None else _quoted_string(name)
        if column + len(literal) <= HEADER_LINE_OCTETS_AIM:
            return literal
    # Some readers split the words of a phrase at the characters that "Q" leaves as they are.
    return _encoded_words(name, column, only_base64=True)


def _encoded_words(text: str, column: int, *, only_base64: bool = False) -> str:
    """``text`` as encoded words on a line that has ``column`` octets already; a fold between each two."""
    octets = text.encode()
    # "Q" where it is not much longer: people read logs and raw headers.
    in_base64 = only_base64 or 3 * _base64_size(octets) < 2 * _quoted_size(octets)
    size_of, encoded = (_base64_size, _base64_word) if in_base64 else (_quoted_size, _quoted_word)
    room = min(_ENCODED_WORD_OCTETS_MAX, _ENCODED_LINE_OCTETS_MAX - column) - _ENCODED_WORD_FRAME
    if size_of(octets) <= room:
        return encoded(octets)
    room_full = _ENCODED_WORD_OCTETS_MAX - _ENCODED_WORD_FRAME
    if in_base64:
        costs = [len(character.encode()) for character in text]
        room, room_full = room // 4 * 3, room_full // 4 * 3
    else:
        costs = [1 if character in _Q_ONE_CHARACTER else 3 * len(character.encode()) for character in text]
    words = []
    start = 0
    used = 0
    for at, cost in enumerate(costs):
        # A character is never split between words (RFC 2047 §5).
        used += cost
        if used > room and at > start:
            words.append(encoded(text[start:at].encode()))
            start, used, room = at, cost, room_full
    words.append(encoded(text[start:].encode()))
    return "\r\n ".join(words)


def _base64_size(octets: bytes) -> int:
    return (len(octets) + 2) // 3 * 4


def _base64_word(octets: bytes) -> str:
    return f"=?utf-8?b?{binascii.b2a_base64(octets, newline=False).decode('ascii')}?="


def _quoted_size(octets: bytes) -> int:
    return len(octets) + 2 * len(octets.translate(None, _Q_ONE_OCTET))


def _quoted_word(octets: bytes) -> str:
    return f"=?utf-8?q?{''.join([_Q_OCTET[octet] for octet in octets])}?="
