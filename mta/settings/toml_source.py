"""A TOML file read once, with the place of each of its keys, and values of given types made from it."""

from __future__ import annotations

import datetime
import difflib
import enum
import os
import re
import stat
import tomllib
import types
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

from mta.model.errors import BadInput
from mta.settings.toml_lines import KeyPath, key_lines

FILE_BYTES_MAX: Final = 1024 * 1024
_SHOWN_CHARS_MAX: Final = 60
# Keys whose value is never quoted: it may hold a password, and a wrong one is not of the form that it should have.
_SECRET_KEYS: Final = (("dsn",), ("password",))
# User and password in a URL, up to the last '@'; and a password in libpq's other form.
_PASSWORD: Final = re.compile(r"(://).*(?=@)|(password\s*=)\s*[^\s,\]}]+", re.IGNORECASE)
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
_TOML_PLACE: Final = re.compile(r"^(.*) \(at (?:line (\d+), column \d+|end of document)\)$", re.DOTALL)

StructT = TypeVar("StructT", bound=msgspec.Struct)


class TomlSource:
    """The root table of one TOML text, and the way to say where something in it is wrong."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        text = text.replace("\r\n", "\n")
        try:
            self.table: dict[str, Any] = tomllib.loads(text)
            self._lines = key_lines(text)
        except tomllib.TOMLDecodeError as error:
            raise _syntax_fault(error, text, file) from None
        except RecursionError:
            raise BadInput(file, "arrays or tables are nested too deeply") from None
        except ValueError as error:  # an integer of thousands of digits
            raise BadInput(file, f"not TOML: {error}") from None

    @classmethod
    def read(cls, path: Path, bytes_max: int = FILE_BYTES_MAX) -> TomlSource:
        """Reads a regular file of UTF-8 text. Raises BadInput at the path, with a line where one is known."""
        return cls(decode(read_whole(path, bytes_max)[0], str(path)), str(path))

    def where(self, path: KeyPath) -> str:
        """``file:line`` of a key, or of the nearest thing around it that is written down."""
        while path and path not in self._lines:
            path = path[:-1]
        return f"{self.file}:{self._lines[path]}" if path else self.file

    def fault(self, path: KeyPath, what: str) -> BadInput:
        """The error to raise about the key at ``path``."""
        key = ".".join(part for part in path if isinstance(part, str))
        return BadInput(self.where(path), f"{key}: {what}" if key else what)

    def refuse_unknown(self, path: KeyPath, table: dict[str, Any], known: Collection[str]) -> None:
        """Raises BadInput for the first key of ``table`` that is not among ``known``, with the nearest that is."""
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise self.fault((*path, key), f"unknown key{hint} Known here: {', '.join(sorted(known))}")

    def build(self, path: KeyPath, table: object, cls: type[StructT], omit: Collection[str] = ()) -> StructT:
        """A ``cls`` from the table at ``path``, each key checked by its field's type.

        ``omit``: fields that no file may set. What ``cls`` refuses by itself is given its line.
        """
        if not isinstance(table, dict):
            raise self.fault(path, f"expected a table, got {shown(table)}")
        fields = {f.name: f for f in msgspec.structs.fields(cls) if f.name not in omit}
        self.refuse_unknown(path, table, fields.keys())
        given = {key: self.value((*path, key), value, fields[key].type) for key, value in table.items()}
        for name, field in fields.items():
            if field.required and name not in given:
                raise self.fault(path, f"the key {name!r} is missing; expected {allowed(field.type)}")
        try:
            return cls(**given)
        except BadInput as error:  # the struct checks relations between its fields itself
            key = error.where.rpartition(".")[2]
            raise self.fault((*path, key) if key in fields else path, error.what) from None

    def value(self, path: KeyPath, value: object, kind: Any) -> Any:
        """``value`` as ``kind``: a Struct, a tuple of them, or whatever msgspec converts to strictly."""
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self.build(path, value, kind)
        if isinstance(value, dict) and get_origin(kind) in (Union, types.UnionType):
            for arm in get_args(kind):
                if isinstance(arm, type) and issubclass(arm, msgspec.Struct):
                    return self.build(path, value, arm)
        if get_origin(kind) is tuple and isinstance(value, list):
            return tuple(self.value((*path, i), element, get_args(kind)[0]) for i, element in enumerate(value))
        if isinstance(value, float) and value - value != 0:
            raise self.fault(path, f"{value} is no finite number; expected {allowed(kind)}")
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            given = "what stands here (not shown)" if path[-1:] in _SECRET_KEYS else shown(value)
            raise self.fault(path, f"{given} is not allowed; expected {allowed(kind)}") from None


def shown(value: object) -> str:
    """A value as an error message quotes it: short, ASCII, and without what looks like a password."""
    text = ("true" if value else "false") if isinstance(value, bool) else ascii(value)
    text = _PASSWORD.sub(lambda found: (found[1] or found[2]) + "***", text)
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "..."


_PLAIN_NAMES: Final = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def allowed(kind: Any) -> str:
    """What a value of type ``kind`` may be, in words."""
    if get_origin(kind) is Annotated:
        base, *metas = get_args(kind)
        return allowed(base) + "".join(_bounds(meta) for meta in metas if isinstance(meta, msgspec.Meta))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(allowed(arm) for arm in get_args(kind) if arm is not types.NoneType)
    if get_origin(kind) in (tuple, list):
        return f"an array, each {allowed(get_args(kind)[0])}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return one_of(str(member.value) for member in kind)
    if kind is datetime.date:
        return "a date, such as 2027-01-31"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "a table"
    return _PLAIN_NAMES.get(kind, str(kind))


def one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(repr(str(name)) for name in names)


def _bounds(meta: msgspec.Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge:,} to {meta.le:,}"
    if meta.ge is not None:
        return f" not below {meta.ge:,}"
    if meta.max_length is not None:
        return f" of {meta.min_length or 0} to {meta.max_length:,} characters"
    return ""


def only_owner_and_group(what: str) -> Callable[[os.stat_result], str]:
    """For ``read_whole``, of a file that holds a secret, which is ``what``: no stranger may read it, and nobody but its
    owner exchange it. 0600, 0640, 0400, 0440 pass."""

    def refusal(known: os.stat_result) -> str:
        mode = stat.S_IMODE(known.st_mode)
        if mode & (stat.S_IWGRP | stat.S_IRWXO):
            return f"has mode {mode:04o}: {what} is readable by its owner and group at most (chmod 0600, or 0640)"
        return ""

    return refusal


def read_whole(
    path: Path, bytes_max: int, refusal: Callable[[os.stat_result], str] = lambda _: ""
) -> tuple[bytes, os.stat_result]:
    """A regular file as a whole, and what the system says of it. Raises BadInput at the path.

    ``refusal`` says why the file must not be used, going by its owner and mode; empty: it may be.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to must not stop the daemon.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise BadInput(str(path), f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise BadInput(str(path), "is not a regular file")
        if refused := refusal(before):
            raise BadInput(str(path), refused)
        content = b""
        while len(content) <= bytes_max and (piece := os.read(handle, bytes_max + 1 - len(content))):
            content += piece
        after = os.fstat(handle)
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from None
    finally:
        os.close(handle)
    if len(content) > bytes_max:
        raise BadInput(str(path), f"is larger than {bytes_max:,} bytes")
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise BadInput(str(path), "was changed while it was read; write a new file and rename it into place")
    return content, after


def decode(content: bytes, file: str) -> str:
    """The text of a file of UTF-8, without its byte order mark. Raises BadInput at file and line."""
    if content.startswith(_UTF16_BOMS):
        raise BadInput(f"{file}:1", "is UTF-16 text; TOML is UTF-8")
    content = content.removeprefix(_UTF8_BOM)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{file}:{line}", f"byte 0x{content[error.start]:02x} is not UTF-8") from None


def _syntax_fault(error: tomllib.TOMLDecodeError, text: str, file: str) -> BadInput:
    place = _TOML_PLACE.match(str(error))
    if place is None:
        return BadInput(file, f"not TOML: {error}")
    line = place[2] or text.rstrip("\n").count("\n") + 1
    return BadInput(f"{file}:{line}", f"not TOML: {place[1]}")
