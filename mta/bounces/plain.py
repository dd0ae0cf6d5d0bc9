"""A bounce in somebody's own words: which recipients it is about, and what it says of each.

There are as many forms as there were mail servers. They agree in this: the report comes before the message that it
returns; an address that failed stands at the head of a line, or after a word that announces it; and what is wrong with
it stands beside or below it, or in what a server said.
"""

from __future__ import annotations

import re
from typing import Final

from mta.bounces.letter import Recipient
from mta.bounces.words import PARTICULARS, RETURNED
from mta.failure.reply_text import parse_reply_text, stage_in
from mta.model.failure import Evidence

RECIPIENTS_MAX: Final = 1_000
_SAID_CHARS: Final = 2_000
_WORD: Final = 3  # characters beside an address that may mean something
_LINES: Final = 6  # below an address, that may say what is wrong with it
_LINES_MAX: Final = 2_000
_LINE_CHARS: Final = 1_000
_AHEAD: Final = 100  # addresses in one line
_LOOKS: Final = 4  # for the beginning of the message that a text returns
_HEADLINE: Final = 40  # characters: what stands at the very beginning is a headline of the report itself
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
    rf"(?:recipients?|(?<!sender )address(?:es)?|user|mailbox|account|to|for|destinat\w+|empf\w+|usuario|an|à|para)"
    rf"\b[^@\n<]{{0,30}}[\s:<\"'(=]{{1,4}}<?)({ADDRESS.pattern})",
    re.IGNORECASE,
)
_REFUSED: Final = re.compile(
    rf"(?:^|\s)[45]\d\d[ -](?:[245]\.\d{{1,3}}\.\d{{1,3}} )?[^@\n]{{0,60}}?<({ADDRESS.pattern})>", re.IGNORECASE
)
# The last word of a line that says something, but of whom the message is from.
_ENDING: Final = re.compile(
    r"^(?!\W{0,40}(?:from|sender|reply|return|contact|please|cc|von|de)\b)"
    rf"[^@\n]{{3,80}}: ?<?({ADDRESS.pattern})>?\s*$",
    re.IGNORECASE,
)
_CODE_LINE: Final = re.compile(
    r"(?:^|said: ?|<<< ?|: |\"|'|\(|=> ?|response:? ?|error:? ?)(?:#?[45]\d\d)(?:[ -]|: |$)", re.IGNORECASE
)
_AT_START: Final = (_HEAD, _ENDING)
# What stands before it are the particulars of the message, not of those whom it did not reach.
_FOLLOWING: Final = re.compile(
    r"(?:following|these|one or more|below)[^\n:.]{0,40}(?:recipient|address|destinat|user|empf)[^\n]{0,60}:\s*\n",
    re.IGNORECASE,
)
_TALK: Final = re.compile(r"^\s*(?:>>> |<<< |-+|={3,}|\.{3} while talking)")
_BECAUSE: Final = re.compile(
    r"^[^\w\n]{0,80}(?:\w{1,40} )?(?:reason|cause|motivo|grund|raison|causa|причина|原因|理由|退信原因)\b"
    r"[^:：\n]{0,30}[:：]\s{0,20}(?=\S)",
    re.IGNORECASE | re.MULTILINE,
)
# The subject of the message, which a report may tell: its sender's words.
_SUBJECT: Final = re.compile(
    r"^\W{0,20}(?:the |your )?(?:message )?(?:subject|betreff|objet|asunto|oggetto|assunto)"
    r"(?: of (?:the|your) (?:message|e-?mail))?(?: is| was)?\s{0,8}:.*$",
    re.IGNORECASE | re.MULTILINE,
)
_STAGE: Final = re.compile(
    r"(?:>>> ?|^-{0,40} ?SMTP command:?[ -]{0,40}\n\s{0,20})(RCPT|DATA|MAIL|EHLO|HELO|\.)", re.IGNORECASE | re.MULTILINE
)
_STAGES: Final = {"rcpt": "rcpt", "data": "data", "mail": "mail", "ehlo": "ehlo", "helo": "ehlo", ".": "dot"}


def own_words(text: str) -> str:
    """A text up to the message that it returns."""
    found = RETURNED.search(text)
    for _ in range(_LOOKS):
        if found is None:
            return text
        if PARTICULARS.search(text[max(found.start() - 200, 0) : found.start()]) is not None:
            end = text.find("\n\n", found.start())
        elif found.start() < _HEADLINE:
            end = found.end()
        else:
            break
        found = RETURNED.search(text, end) if end > 0 else None
    return text if found is None else text[: found.start()]


def recipients_in(text: str, ignored: frozenset[str], *, is_loose: bool = False) -> list[Recipient]:
    """Those whom a report is about, each with what is said of it. ``ignored``: in lower case, who is never meant.

    ``is_loose``: where nobody is announced as failed, whoever is named first at all.
    """
    stage = _stage(text)
    announced = [found.end() for found in _FOLLOWING.finditer(text)]
    lines = text[announced[-1] :].splitlines() if announced else text.splitlines()
    places = _places(lines, ignored, is_loose or bool(announced))
    if not places and announced:
        lines = text.splitlines()
        places = _places(lines, ignored, is_loose)
    if not places:
        return []
    found: dict[str, Recipient] = {}
    whole = evidence_in(text)
    is_one = len({address.lower() for _, address in places}) == 1
    for number, (at, address) in enumerate(places):
        if len(found) >= RECIPIENTS_MAX:
            break
        if address.lower() in found:
            continue
        ahead = places[number + 1 : number + 1 + _AHEAD]
        end = next((later for later, other in ahead if later > at and other.lower() != address.lower()), None)
        evidence = _beside(lines, at, end, address)
        if not _says_something(evidence) or (is_one and not (evidence.code or evidence.enhanced)):
            evidence = whole  # all of it is about the one
        found[address.lower()] = Recipient(address, evidence if evidence.stage else evidence._replace(stage=stage))
    return list(found.values())


def evidence_in(text: str) -> Evidence:
    """What a text says is wrong: the last reply of a server in it, or else all of it."""
    text = _SUBJECT.sub("", text)
    lines = [line.strip() for line in text.splitlines()]
    hits = {at for at, line in enumerate(lines) if _CODE_LINE.search(line)}
    stage = _stage(text)
    if hits:
        at = last = max(hits)
        while at - 1 in hits:  # of a reply of several lines the first
            at -= 1
        end = last + 1
        while end < len(lines) and lines[end] and end - last < 3 and not _TALK.match(lines[end]):
            end += 1
        evidence = parse_reply_text(" ".join(lines[at:end])[:_SAID_CHARS])
        if evidence.code or evidence.enhanced:
            return evidence if evidence.stage else evidence._replace(stage=stage)
    because = _BECAUSE.search(text)
    if because is not None:
        # Up to the next empty line: what stands elsewhere is advice, with causes that may not be this one.
        reason = text[because.end() :].partition("\n\n")[0]
        lines = [line.strip() for line in reason.splitlines()] if len(reason) > _WORD else lines
    evidence = parse_reply_text(" ".join(" ".join(lines).split())[:_SAID_CHARS])
    return evidence if evidence.stage else evidence._replace(stage=stage)


def _stage(text: str) -> str:
    found = _STAGE.findall(text)
    return _STAGES[found[-1].lower()] if found else stage_in(text)


def _places(lines: list[str], ignored: frozenset[str], is_loose: bool) -> list[tuple[int, str]]:
    """(line, address) of those that failed, by the surest of the ways in which they are named."""
    heads: list[tuple[int, str]] = []
    for pattern in (_HEAD, _REFUSED, _ANNOUNCED, _ENDING):
        places = _matching(pattern, lines, ignored)
        if pattern is _HEAD:
            heads = places
        if named := [place for place in places if not _OURS.match(place[1])]:
            return named
    if heads or not is_loose:
        return heads
    return [place for place in _matching(ADDRESS, lines, ignored) if not _OURS.match(place[1])][:1]


def _matching(pattern: re.Pattern[str], lines: list[str], ignored: frozenset[str]) -> list[tuple[int, str]]:
    places = []
    for at, line in enumerate(lines[:_LINES_MAX]):
        if "@" not in line:
            continue
        line = line[:_LINE_CHARS]
        for match in [pattern.match(line)] if pattern in _AT_START else pattern.finditer(line):
            if match is None:
                continue
            address = (match[1] if pattern.groups else match[0]).strip(".'`=")
            address = _NAMED.sub("", address)
            local, at_sign, _ = address.partition("@")
            if at_sign and local.strip("*.-_") and address.lower() not in ignored:
                places.append((at, address))
    return places


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
