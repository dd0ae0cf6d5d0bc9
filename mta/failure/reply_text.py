"""Replies written as lines of text, as logs, bounces and operators have them: taken apart, and qualified.

Understood are ``550 5.1.1 text``, ``550-5.1.1 of more lines 550 5.1.1 joined``, ``5.2.3 text``, ``#5.1.1 text``, text
alone, and what programs put around a reply that they pass on: ``smtp; 550 text``, ``RCPT 550 text``, ``host mx said:
550 text (in reply to RCPT TO command)``, ``SMTP error from remote mail server after RCPT TO:<...>: 550 text``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from mta.failure.qualify import BOUNCE_CHARS_MAX, Qualifier
from mta.model.failure import Evidence, Verdict

_ENHANCED: Final = r"[245]\.\d{1,3}\.\d{1,3}"
_HEAD: Final = re.compile(
    rf"\s*(?:(?:smtp|x-[a-z-]{{1,30}})\s*;\s*)?(?:<<<\s*)?(?:([2-5]\d\d)(?=[\s#-]|:\s|$)[\s:-]*)?"
    rf"(?:[#(]{{0,2}}({_ENHANCED})(?=[\s:;,)\]\"']|$)[\s:;,)]*)?",
    re.IGNORECASE,
)
_PASSED_ON: Final = re.compile(
    rf"(?:said|says|responded(?: with)?|response|replied|reply|error|<<<|->|[:'\"(])[\s:'\"(]{{1,4}}"
    rf"([45][0-7]\d)(?:[\s-]|:\s){{1,3}}#?(?:({_ENHANCED})\b[\s:]*)?",
    re.IGNORECASE,
)
# A reply behind the command that it was to; behind several where a program sends them together.
_COMMAND: Final = r"(?:EHLO|HELO|STARTTLS|MAIL|RCPT|DATA|BDAT)"
_TO_COMMAND: Final = re.compile(
    rf"(?:[Ss][Mm][Tt][Pp]\s*;\s*)?({_COMMAND}(?:\+{_COMMAND})*)(?: [a-z]{{1,20}})?:?\s{{1,4}}(?=[45]\d\d[ -])"
)
_COMMAND_STAGES: Final = {
    "EHLO": "ehlo",
    "HELO": "ehlo",
    "MAIL": "mail",
    "RCPT": "rcpt",
    "DATA": "data",
    "BDAT": "data",
}
_WORDS_CHARS_MIN: Final = 4  # less is no text of a reply
_IN_TEXT: Final = re.compile(rf"(?:[(\[]?#|[(\[]|(?:code|status)\s?[:=]\s?)({_ENHANCED})\b", re.IGNORECASE)
_STAGES: Final = (
    ("dot", re.compile(r"(?:in reply to|after) (?:the )?end of (?:data|message)|after end of data", re.IGNORECASE)),
    ("data", re.compile(r"in reply to DATA|after (?:pipelined )?(?:sending )?DATA\b", re.IGNORECASE)),
    ("rcpt", re.compile(r"(?:in reply to|after) (?:pipelined )?(?:sending )?RCPT\b", re.IGNORECASE)),
    ("mail", re.compile(r"(?:in reply to|after) (?:pipelined )?(?:sending )?MAIL\b", re.IGNORECASE)),
    ("ehlo", re.compile(r"(?:in reply to|after) (?:sending )?(?:EHLO|HELO)\b", re.IGNORECASE)),
    ("greeting", re.compile(r"after initial connection|refused to talk to me", re.IGNORECASE)),
)


class ClassifiedReply(msgspec.Struct, frozen=True):
    """One line of a list of replies, and what it means."""

    line: int  # from 1
    text: str  # as given
    evidence: Evidence
    verdict: Verdict


def parse_reply_text(line: str) -> Evidence:
    """What a reply says, as far as it says it: code 0, an empty enhanced code or stage where there is none.

    Never raises; looks at the first 64 Ki characters.
    """
    line = line[:BOUNCE_CHARS_MAX].strip()
    command = _TO_COMMAND.match(line)
    if command is not None:
        line = line[command.end() :]
    head = _HEAD.match(line)
    assert head is not None
    code, enhanced, text = int(head[1] or 0), head[2] or "", line[head.end() :]
    if not code and (inner := _PASSED_ON.search(line)) is not None:
        code, enhanced = int(inner[1]), inner[2] or enhanced
        text = line[inner.end() :] if len(line) - inner.end() >= _WORDS_CHARS_MIN else text
    if code >= 400 and line[head.start(1) + 3 : head.start(1) + 4] == "-" and head[1]:
        text = _joined(text, head[1])
    if not enhanced and (inner := _IN_TEXT.search(text)) is not None:
        enhanced = inner[1]
    stage = _COMMAND_STAGES.get(command[1], "") if command is not None else next(_stages_in(line), "")
    return Evidence(code, enhanced, text.strip(), stage)


def stage_in(text: str) -> str:
    """The stage of a session that a text for people names; empty where it names none, or several."""
    stages = list(_stages_in(text))
    return stages[0] if len(stages) == 1 else ""


def _stages_in(text: str) -> Iterator[str]:
    if "after" in text or "reply" in text or "refused to" in text:
        yield from (name for name, said in _STAGES if said.search(text))


def _joined(text: str, code: str) -> str:
    """Without the codes with which the further lines of one reply begin."""
    return re.sub(rf"(?:^|(?<=\s)){code}[ -](?:{_ENHANCED}(?=\s|$)\s?)?", "", text)


def classify_replies(lines: Iterable[str], qualifier: Qualifier) -> Iterator[ClassifiedReply]:
    """Each line that is not empty, in order."""
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        if text.strip():
            evidence = parse_reply_text(text)
            yield ClassifiedReply(number, text, evidence, qualifier.qualify(evidence))
