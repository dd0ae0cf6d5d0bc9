"""A bounce in somebody's own words: which recipients it is about, and what it says of each.

There are as many forms as there were mail servers. They agree in this: the report comes before the message that it
returns; an address that failed stands at the head of a line, or after a word that announces it; and what is wrong with
it stands beside or below it, or in what a server said.
"""

from __future__ import annotations

import re
from typing import Final

from mta.bounces.letter import Recipient
from mta.bounces.words import RETURNED
from mta.failure.reply_text import parse_reply_text
from mta.model.failure import Evidence

RECIPIENTS_MAX: Final = 1_000
_SAID_CHARS: Final = 2_000
_WORD: Final = 3  # characters beside an address that may mean something
_LINES: Final = 6  # below an address, that may say what is wrong with it
ADDRESS: Final = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@(?:[A-Za-z0-9_-]{1,63}\.){1,10}[A-Za-z0-9-]{2,63}"
    r"|[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@(?:localhost|[A-Za-z][A-Za-z0-9-]{2,62})\b"
)
_NAMED: Final = re.compile(r"^(?:smtp|rfc822)=", re.IGNORECASE)  # of X.400: dda:SMTP=ann@example.com
_OURS: Final = re.compile(
    r"^<?(?:mailer-?daemon|post-?master|abuse|noc|help ?desk|support|hostmaster|webmaster|bounces?|no-?reply)@",
    re.IGNORECASE,
)
# An address that a line begins with, or that is alone in brackets: with at most a word before it.
_HEAD: Final = re.compile(
    rf"^[\s>*|\"'(\[-]{{0,20}}"
    rf"(?:(?:to|an|for|f[uü]r|a|rcpt|recipient|empf[aä]nger|address|user|e-?mail|destinataire|failed)[\s:=]{{1,8}})?"
    rf"(?:\"[^\"]{{0,80}}\" ?)?[<\[(]{{0,3}}(?:smtp:|mailto:|rfc822;?|<)?\s?({ADDRESS.pattern})",
    re.IGNORECASE,
)
_ANNOUNCED: Final = re.compile(
    rf"(?:rcpt to: ?<?|x-failed-recipients?: |(?:final|original)-recipient: ?(?:rfc822;)? ?|"
    rf"(?:recipients?|address(?:es)?|user|mailbox|account|to|for|destinat\w+|empf\w+|usuario|an|à|para|consegnare a)"
    rf"\b[^@\n<]{{0,30}}[\s:<\"'(=]{{1,4}}<?)({ADDRESS.pattern})",
    re.IGNORECASE,
)
_REFUSED: Final = re.compile(
    rf"(?:^|\s)[45]\d\d[ -](?:[245]\.\d{{1,3}}\.\d{{1,3}} )?[^@\n]{{0,60}}?<({ADDRESS.pattern})>", re.IGNORECASE
)
_CODE_LINE: Final = re.compile(
    r"(?:^|said: ?|<<< ?|: |\"|'|\(|=> ?|response: ?|error: ?)(?:#?[45]\d\d)(?:[ -]|$)", re.IGNORECASE
)
# What stands before it are the particulars of the message, not of those whom it did not reach.
_FOLLOWING: Final = re.compile(
    r"(?:following|these|one or more|below)[^\n:.]{0,40}(?:recipient|address|destinat|user|empf)[^\n]{0,60}:\s*\n",
    re.IGNORECASE,
)
_TALK: Final = re.compile(r"^\s*(?:>>> |<<< |-+|={3,}|\.{3} while talking)")
_STAGE: Final = re.compile(r">>> ?(RCPT|DATA|MAIL|EHLO|HELO|\.)", re.IGNORECASE)
_STAGES: Final = {"rcpt": "rcpt", "data": "data", "mail": "mail", "ehlo": "ehlo", "helo": "ehlo", ".": "dot"}


def own_words(text: str) -> str:
    """A text up to the message that it returns."""
    found = RETURNED.search(text)
    # At the very beginning it is a headline of the report itself.
    while found is not None and found.start() < 40:
        found = RETURNED.search(text, found.end())
    return text if found is None else text[: found.start()]


def recipients_in(text: str, ignored: frozenset[str]) -> list[Recipient]:
    """Those whom a report is about, each with what is said of it. ``ignored``: in lower case, who is never meant."""
    stage = _stage(text)
    announced = [found.end() for found in _FOLLOWING.finditer(text)]
    lines = text[announced[-1] :].splitlines() if announced else text.splitlines()
    places = _places(lines, ignored)
    if not places and announced:
        lines = text.splitlines()
        places = _places(lines, ignored)
    if not places:
        return []
    found: dict[str, Recipient] = {}
    whole = evidence_in(text)
    is_one = len({address.lower() for _, address in places}) == 1
    for number, (at, address) in enumerate(places):
        if address.lower() in found or len(found) >= RECIPIENTS_MAX:
            continue
        end = next(
            (later for later, other in places[number + 1 :] if later > at and other.lower() != address.lower()), None
        )
        evidence = _beside(lines, at, end, address)
        if not _says_something(evidence) or (is_one and not (evidence.code or evidence.enhanced)):
            evidence = whole  # all of it is about the one
        found[address.lower()] = Recipient(address, evidence if evidence.stage else evidence._replace(stage=stage))
    return list(found.values())


def evidence_in(text: str) -> Evidence:
    """What a text says is wrong: the last reply of a server in it, or else all of it."""
    lines = [line.strip() for line in text.splitlines()]
    hits = [at for at, line in enumerate(lines) if _CODE_LINE.search(line)]
    stage = _stage(text)
    if hits:
        at = hits[-1]
        while at > 0 and at - 1 in hits:  # of a reply of several lines the first
            at -= 1
        end = hits[-1] + 1
        while end < len(lines) and lines[end] and end - hits[-1] < 3 and not _TALK.match(lines[end]):
            end += 1
        evidence = parse_reply_text(" ".join(lines[at:end])[:_SAID_CHARS])
        if evidence.code or evidence.enhanced:
            return evidence if evidence.stage else evidence._replace(stage=stage)
    evidence = parse_reply_text(" ".join(" ".join(lines).split())[:_SAID_CHARS])
    return evidence if evidence.stage else evidence._replace(stage=stage)


def _stage(text: str) -> str:
    found = _STAGE.findall(text)
    return _STAGES[found[-1].lower()] if found else ""


def _places(lines: list[str], ignored: frozenset[str]) -> list[tuple[int, str]]:
    """(line, address) of those that failed, by the surest of the ways in which they are named."""
    for pattern in (_HEAD, _REFUSED, _ANNOUNCED, ADDRESS):
        places = []
        for at, line in enumerate(lines[:2_000]):
            line = line[:1_000]
            for match in [pattern.match(line)] if pattern is _HEAD else pattern.finditer(line):
                if match is None:
                    continue
                address = (match[1] if pattern.groups else match[0]).strip(".'`=")
                address = _NAMED.sub("", address)
                if "@" in address and address.lower() not in ignored and not _OURS.match(address):
                    places.append((at, address))
        if places:
            return places[:1] if pattern is ADDRESS else places
    return []


def _beside(lines: list[str], at: int, end: int | None, address: str) -> Evidence:
    """What stands in an address's line, and below it up to the next one, an empty line after words, or the talk."""
    head = lines[at].replace(address, "").strip(" \t<>:;,.()[]*\"'")
    said = [lines[at].strip()] if len(head) > _WORD else []
    for line in lines[at + 1 : min(at + 1 + _LINES, len(lines) if end is None else end)]:
        text = line.strip()
        if not text:
            if said:
                break
            continue
        if _TALK.match(line) and said:
            break
        said.append(text)
    return evidence_in("\n".join(said)) if said else Evidence()


def _says_something(evidence: Evidence) -> bool:
    return bool(evidence.code or evidence.enhanced) or len(ADDRESS.sub("", evidence.text)) > 8
