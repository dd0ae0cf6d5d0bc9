"""Dialogues as files: what a server answers to what, and what must become of each recipient.

    # Title: the situation and the promise, one line.
    envelope: a@example.com > one@example.test, two@example.test ; size=100 body=5000 8bit
    only: socket pipelined            (run only so; words: pure bytewise socket oracle pipelined lockstep)
    on RCPT two@: 550 5.1.1 unknown   (event, optional #n for its n-th time, optional part of the line, answer)
    on DOT #2: 250-first \\ 250 last  ( \\ parts lines)
    on MAIL: !close
    expect 1: accepted, refused 550 RCPT
    oracle 1: accepted, refused 550   (where aiosmtplib sees something else; then also a "why:" line)

Events are greeting, EHLO, HELO, MAIL, RCPT, DATA, BODY (its first octet), DOT, BDAT, RSET, QUIT. In an answer, words
of the form ``!close`` ``!reset`` ``!silent`` end it; ``!lf`` ends its lines by LF, ``!raw`` adds no line end;
``\\x1b`` and the like are octets. Without a rule the server behaves well, and is strict about the order of commands.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from pathlib import Path

EHLO = "250-mx.example.test \\ 250-PIPELINING \\ 250-SIZE 1000000 \\ 250-8BITMIME \\ 250 ENHANCEDSTATUSCODES"
EVENTS = ("greeting", "EHLO", "HELO", "MAIL", "RCPT", "DATA", "BODY", "DOT", "BDAT", "RSET", "QUIT")
_RULE = re.compile(r"on (?P<event>\w+)(?: #(?P<nth>\d+))?(?: (?P<part>.*?))?: (?P<answer>.*)")


@dataclass
class Rule:
    event: str
    nth: int | None
    part: str
    answer: str


@dataclass
class ScriptEnvelope:
    sender: str
    recipients: list[str]
    size_bytes: int = 0
    body: bytes = b""
    needs_8bit: bool = False


@dataclass
class Answer:
    octets: bytes = b""
    then: str = ""  # "", "close", "reset", "silent"


@dataclass
class Script:
    path: Path
    title: str = ""
    why: str = ""
    only: set[str] = field(default_factory=set)
    rules: list[Rule] = field(default_factory=list)
    envelopes: list[ScriptEnvelope] = field(default_factory=list)
    expected: dict[int, list[str]] = field(default_factory=dict)
    oracle: dict[int, list[str]] = field(default_factory=dict)
    open_expected: str = ""
    stored: int | None = None

    def runs(self, *how: str) -> bool:
        """Whether a run of this kind applies; ``only`` lists the words that must all be allowed."""
        kinds = {"pure", "bytewise", "socket", "oracle"}
        modes = {"pipelined", "lockstep"}
        # Without a session there is nothing to run face to face.
        allowed_kinds = self.only & kinds or ({"socket", "oracle"} if self.open_expected else kinds)
        allowed_modes = self.only & modes or modes
        return all(word in allowed_kinds or word in allowed_modes for word in how)


def load(path: Path) -> Script:
    script = Script(path)
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            _take(script, line.strip())
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    if not script.title or not (script.expected or script.open_expected):
        raise ValueError(f"{path}: a title and an expectation are needed")
    if script.oracle and not script.why:
        raise ValueError(f"{path}: an oracle line needs its why")
    return script


def _take(script: Script, line: str) -> None:
    if not line:
        return
    if line.startswith("#"):
        script.title = script.title or line[1:].strip()
        return
    match = _RULE.fullmatch(line)
    if match is not None:
        if match["event"] not in EVENTS:
            raise ValueError(f"unknown event {match['event']!r}")
        script.rules.append(
            Rule(match["event"], int(match["nth"]) if match["nth"] else None, match["part"] or "", match["answer"])
        )
        return
    key, _, value = line.partition(":")
    value = value.strip()
    word, _, number = key.partition(" ")
    match word:
        case "envelope":
            script.envelopes.append(_envelope(value, len(script.envelopes)))
        case "only":
            script.only = set(value.split())
        case "why":
            script.why = value
        case "expect" if number == "open":
            script.open_expected = value
        case "expect":
            script.expected[int(number)] = [outcome.strip() for outcome in value.split(",")]
        case "oracle":
            script.oracle[int(number)] = [outcome.strip() for outcome in value.split(",")]
        case "stored":
            script.stored = int(value)
        case _:
            raise ValueError(f"not a line of a script: {line!r}")


def _envelope(value: str, index: int) -> ScriptEnvelope:
    addresses, _, options = value.partition(";")
    sender, _, recipients = addresses.partition(">")
    envelope = ScriptEnvelope(sender.strip(), [each.strip() for each in recipients.split(",")])
    envelope.body = b"Subject: %d\r\n\r\nbody of %d\r\n" % (index, index)
    for option in options.split():
        name, _, number = option.partition("=")
        match name:
            case "size":
                envelope.size_bytes = int(number)
            case "body":
                envelope.body = (b"x" * 70 + b"\r\n") * (int(number) // 72)
            case "8bit":
                envelope.needs_8bit = True
            case _:
                raise ValueError(f"unknown option {option!r}")
    return envelope


def answer_of(text: str) -> Answer:
    answer = Answer()
    lines: list[bytes] = []
    line_end = b"\r\n"
    for line in text.split(" \\ "):
        words: list[str] = []
        for word in line.split(" "):
            match word:
                case "!close" | "!reset" | "!silent":
                    answer.then = word[1:]
                case "!lf":
                    line_end = b"\n"
                case "!raw":
                    line_end = b""
                case _:
                    words.append(word)
        if any(words):
            lines.append(codecs.escape_decode(" ".join(words).encode("utf-8"))[0])  # type: ignore[attr-defined]
    answer.octets = b"".join(line + line_end for line in lines)
    return answer


@dataclass
class Stored:
    sender: str
    recipients: list[str]
    body: bytes


class ScriptedSession:
    """The server's side of one connection, without a socket: octets in, answers out."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._counts: dict[str, int] = {}
        self._buffer = b""
        self._body = bytearray()
        self._mode = "command"  # or "data", "bdat", "ended"
        self._bdat_left = 0
        self._sender: str | None = None
        self._recipients: list[str] = []
        self.commands: list[str] = []
        self.stored: list[Stored] = []

    def greet(self) -> list[Answer]:
        return [self._answer("greeting", "", "220 mx.example.test ESMTP")]

    def receive(self, data: bytes) -> list[Answer]:
        answers: list[Answer] = []
        self._buffer += data
        while self._buffer and self._mode != "ended":
            before = (len(self._buffer), self._mode)
            if self._mode == "command":
                if b"\r\n" not in self._buffer:
                    break
                line, self._buffer = self._buffer.split(b"\r\n", 1)
                answers.append(self._command(line.decode("utf-8", "replace")))
            elif self._mode == "data":
                answers.extend(self._data())
            else:
                answers.extend(self._bdat())
            if answers and answers[-1].then:
                self._mode = "ended"
            if before == (len(self._buffer), self._mode):
                break
        return answers

    def _answer(self, event: str, line: str, usual: str) -> Answer:
        self._counts[event] = self._counts.get(event, 0) + 1
        for rule in self._script.rules:
            if rule.event == event and rule.nth in (None, self._counts[event]) and rule.part in line:
                return answer_of(rule.answer)
        return answer_of(usual)

    def _command(self, line: str) -> Answer:
        self.commands.append(line)
        verb = line.split(" ")[0].upper()
        match verb:
            case "EHLO":
                return self._answer(verb, line, EHLO)
            case "HELO":
                return self._answer(verb, line, "250 mx.example.test")
            case "MAIL":
                answer = self._answer(verb, line, "250 2.1.0 ok" if self._sender is None else "503 5.5.1 nested MAIL")
                if answer.octets.startswith(b"2"):
                    self._sender, self._recipients = line[11:].split(">")[0], []
                return answer
            case "RCPT":
                answer = self._answer(verb, line, "250 2.1.5 ok" if self._sender is not None else "503 5.5.1 no MAIL")
                if answer.octets.startswith(b"2"):
                    self._recipients.append(line[9:].split(">")[0])
                return answer
            case "DATA":
                answer = self._answer(verb, line, "354 go" if self._recipients else "554 5.5.1 no valid recipients")
                if answer.octets.startswith(b"354"):
                    self._mode = "data"
                return answer
            case "BDAT":
                self._bdat_left = int(line.split(" ")[1])
                self._mode = "bdat"
                return Answer()
            case "RSET":
                self._sender, self._recipients = None, []
                return self._answer(verb, line, "250 2.0.0 ok")
            case "QUIT":
                return self._answer(verb, line, "221 2.0.0 bye !close")
        return answer_of("500 5.5.2 unknown command")

    def _data(self) -> list[Answer]:
        answers = []
        if not self._body:
            early = self._answer("BODY", "", "")
            if early.octets or early.then:
                answers.append(early)
                if early.then:
                    return answers
        tail_at = max(0, len(self._body) - 4)
        self._body += self._buffer
        self._buffer = b""
        end = 0 if self._body.startswith(b".\r\n") else self._body.find(b"\r\n.\r\n", tail_at) + 2
        if end == 1:
            return answers
        body = bytes(self._body[:end]).replace(b"\r\n..", b"\r\n.")
        self._buffer = bytes(self._body[end + 3 :])
        answers.append(self._finish("DOT", body[1:] if body.startswith(b"..") else body))
        return answers

    def _bdat(self) -> list[Answer]:
        take = min(self._bdat_left, len(self._buffer))
        self._body += self._buffer[:take]
        self._buffer = self._buffer[take:]
        self._bdat_left -= take
        return [] if self._bdat_left else [self._finish("BDAT", bytes(self._body))]

    def _finish(self, event: str, body: bytes) -> Answer:
        self._mode = "command"
        self._body = bytearray()
        usual = "250 2.0.0 queued" if self._recipients else "503 5.5.1 no valid recipients"
        answer = self._answer(event, "", usual)
        if answer.octets.startswith(b"2") and self._recipients:
            self.stored.append(Stored(self._sender or "", self._recipients, body))
        if event == "DOT" or answer.octets.startswith(b"2"):
            self._sender, self._recipients = None, []  # a failed BDAT leaves the transaction open
        return answer
