"""Where each key of a TOML text stands.

``tomllib`` gives values without places. This scanner is run after it, on a text it has accepted; so
it needs to know only where keys, strings and brackets end, not what is allowed (TOML 1.0.0).
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right

KeyPath = tuple[str | int, ...]


def key_lines(text: str) -> dict[KeyPath, int]:
    """Line (from 1) of every table, key and array element, by its path: ``("rule", 2, "name")``.

    ``text`` must have been accepted by ``tomllib.loads``, with line ends as LF.
    """
    return _Scanner(text).document()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [0, *(i + 1 for i, char in enumerate(text) if char == "\n")]
        self._lines: dict[KeyPath, int] = {}
        self._last_of_array: dict[KeyPath, int] = {}  # index of the latest [[...]] of each name

    def document(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip_blank():
            if self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _record(self, path: KeyPath, at: int) -> None:
        self._lines.setdefault(path, bisect_right(self._line_starts, at))

    def _skip_spaces(self) -> None:
        while self._peek() in (" ", "\t"):
            self._at += 1

    def _skip_blank(self) -> bool:
        """Skips spaces, line ends and comments; False at the end of the text."""
        while char := self._peek():
            if char == "#":
                end = self._text.find("\n", self._at)
                self._at = end if end >= 0 else len(self._text)
            elif char in " \t\n":
                self._at += 1
            else:
                return True
        return False

    def _header(self) -> KeyPath:
        began = self._at
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        names = self._dotted_key()
        for i, name in enumerate(names):
            path += (name,)
            self._record(path, began)
            if is_array and i == len(names) - 1:
                self._last_of_array[path] = self._last_of_array.get(path, -1) + 1
            if path in self._last_of_array:
                path += (self._last_of_array[path],)
                self._record(path, began)
        self._at += 2 if is_array else 1
        return path

    def _pair(self, table: KeyPath) -> None:
        began = self._at
        path = table
        for name in self._dotted_key():
            path += (name,)
            self._record(path, began)
        self._at += 1  # =
        self._skip_spaces()
        self._value(path)

    def _dotted_key(self) -> list[str]:
        names = []
        while True:
            self._skip_spaces()
            began = self._at
            if self._peek() in ('"', "'"):
                self._skip_string()
                names.append(str(tomllib.loads("key = " + self._text[began : self._at])["key"]))
            else:
                while self._peek() not in (".", "=", "]", " ", "\t"):
                    self._at += 1
                names.append(self._text[began : self._at])
            self._skip_spaces()
            if self._peek() != ".":
                return names
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        char = self._peek()
        if char in ('"', "'"):
            self._skip_string()
        elif char == "[":
            self._array(path)
        elif char == "{":
            self._inline_table(path)
        else:
            while self._peek() not in ("", ",", "]", "}", "#", "\n"):
                self._at += 1

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while self._skip_blank() and self._peek() != "]":
            if self._peek() == ",":
                self._at += 1
                continue
            element = (*path, index)
            self._record(element, self._at)
            self._value(element)
            index += 1
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._skip_blank() and self._peek() != "}":
            if self._peek() == ",":
                self._at += 1
            else:
                self._pair(path)
        self._at += 1

    def _skip_string(self) -> None:
        quote = self._peek()
        if self._text.startswith(quote * 3, self._at):
            self._at = self._end_of_string(quote * 3, self._at + 3)
            while self._peek() == quote:  # up to two quotes may stand before the closing three
                self._at += 1
        else:
            self._at = self._end_of_string(quote, self._at + 1)

    def _end_of_string(self, closing: str, at: int) -> int:
        while not self._text.startswith(closing, at):
            at += 2 if closing[0] == '"' and self._text[at] == "\\" else 1
        return at + len(closing)
