"""What the sink does at each step of a dialogue: by a rules file, and by the recipient's local part.

Rules come from a TOML file, first match at a step wins::

    local_parts = true              # the language below; true when absent

    [[rule]]
    step = "rcpt"                   # connect | helo | starttls | mail | rcpt | data | dot
    recipient = "*@busy.example"    # masks with * and ?, any case; rcpt, data and dot only
    local_part = "info"             #   the same, on the part before the @
    mail_from = "news@*"            #   mail and later
    helo = "*.example"              #   helo and later
    client = "127.0.0.*"            #   the client's address, any step
    server = "127.0.0.2"            #   the address that it has called, any step
    tls = false                     #   whether the session is encrypted, any step
    odds = 0.25                     # share of matches that act; the others fall to the next rule
    code = 451                      # the reply instead of the usual one; 421 also closes
    text = "4.7.1 busy"
    delay_ms = 200                  # before the reply
    disconnect = "before-reply"     # or "after-reply"
    reset = false                   # disconnect by RST instead of FIN
    never_answer = false            # keeps the connection and stays silent
    store = true                    # dot only: keep the message all the same; see below

At ``dot`` a message is kept when the reply is positive or when the connection ends before the reply
(the client cannot know: in doubt); ``store`` says otherwise.

The language of local parts: ``WORD@``, ``WORD+tag@``, ``name+WORD@`` or ``name--WORD@``, with

    word    = "ok" / [step "-"] action / action "-after-dot"
    step    = "rcpt" / "data" / "dot"
    action  = code ["-" class "." subject "." detail] / "delay-" ms / "drop" / "reset" / "lose" / "hang"

A code without a step is the reply to RCPT, every other action without one is done at the final dot.
``drop`` and ``reset`` end the connection instead of replying (a message is kept: in doubt), ``lose``
ends it and forgets the message, ``hang`` never answers. When a message has several recipients, the
first recipient with an action at ``data`` or ``dot`` decides for all. Rules go before local parts.
"""

from __future__ import annotations

import enum
import random
import re
import tomllib
from fnmatch import translate
from pathlib import Path
from typing import Any, Final

import msgspec

from mta.model.errors import BadInput

RULES_MAX: Final = 1000  # a script is written by hand; more is a generated mistake
DELAY_MS_MAX: Final = 3_600_000  # an hour: longer than every timeout of RFC 5321 §4.5.3.2
TEXT_CHARS_MAX: Final = 500  # RFC 5321 §4.5.3.1.5 allows 512 octets a reply line


class Step(enum.StrEnum):
    """Where in a dialogue something is done."""

    CONNECT = "connect"
    HELO = "helo"
    STARTTLS = "starttls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    DOT = "dot"


_ORDER: Final = {step: position for position, step in enumerate(Step)}


class Disconnect(enum.StrEnum):
    """When the connection is ended."""

    BEFORE_REPLY = "before-reply"
    AFTER_REPLY = "after-reply"


class Action(msgspec.Struct, frozen=True):
    """What to do at a step. ``code`` 0: the reply that would have been given anyway."""

    code: int = 0
    text: str = ""
    delay_ms: int = 0
    disconnect: Disconnect | None = None
    reset: bool = False
    never_answer: bool = False
    store: bool = True

    @property
    def reply(self) -> str:
        return f"{self.code} {self.text or _text_for(self.code)}"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[rule]]`` of a script file, as written there."""

    step: Step
    recipient: str | None = None
    local_part: str | None = None
    mail_from: str | None = None
    helo: str | None = None
    client: str | None = None
    server: str | None = None
    tls: bool | None = None
    odds: float = 1.0
    code: int = 0
    text: str = ""
    delay_ms: int = 0
    disconnect: Disconnect | None = None
    reset: bool = False
    never_answer: bool = False
    store: bool | None = None

    def action(self) -> Action:
        keeps = self.code < 400 or self.disconnect is Disconnect.BEFORE_REPLY
        return Action(
            self.code,
            self.text,
            self.delay_ms,
            self.disconnect,
            self.reset,
            self.never_answer,
            keeps if self.store is None else self.store,
        )


class Situation(msgspec.Struct):
    """What is known of a dialogue so far; masks are held against these."""

    client: str = ""
    helo: str = ""
    mail_from: str = ""
    server: str = ""
    is_tls: bool = False


class _Compiled:
    """A rule with its masks as patterns; ``masks`` holds (index of the value, pattern)."""

    __slots__ = ("action", "masks", "odds", "tls")

    def __init__(self, rule: Rule) -> None:
        self.action = rule.action()
        self.odds = rule.odds
        self.tls = rule.tls
        written = (rule.client, rule.helo, rule.mail_from, rule.recipient, rule.local_part, rule.server)
        self.masks = [
            (index, re.compile(translate(mask.replace("[", "[[]")), re.IGNORECASE))
            for index, mask in enumerate(written)
            if mask is not None
        ]

    def fits(self, values: tuple[str, str, str, str, str, str], *, is_tls: bool) -> bool:
        return self.tls in (None, is_tls) and all(pattern.match(values[index]) for index, pattern in self.masks)


def dice(seed: int, index: int = 0) -> random.Random:
    """The randomness of a sink's process number ``index``: its own, and the same in every run."""
    return random.Random(f"{seed}:{index}")  # noqa: S311 - behaviour that can be repeated, not a secret


class Script:
    """The behaviour of a sink. Owns its randomness and nothing else; no I/O, no clock.

    ``randomness`` is drawn from once per match of a rule with odds below 1, so a seed and an order
    of commands fix every decision.
    """

    def __init__(self, rules: tuple[Rule, ...] = (), *, local_parts: bool = True, randomness: random.Random) -> None:
        self._randomness = randomness
        self._local_parts = local_parts
        self._rules: dict[Step, list[_Compiled]] = {step: [] for step in Step}
        for rule in rules:
            self._rules[rule.step].append(_Compiled(rule))
        self.speaks_at = frozenset(step for step, of_step in self._rules.items() if of_step)

    def at(self, step: Step, situation: Situation, recipient: str = "") -> Action | None:
        """The action at a step, None for the usual reply. ``recipient`` from RCPT on."""
        if step in self.speaks_at:
            values, is_tls = _values(situation, recipient), situation.is_tls
            for rule in self._rules[step]:
                if rule.fits(values, is_tls=is_tls) and (rule.odds >= 1.0 or self._randomness.random() < rule.odds):
                    return rule.action
        if recipient and self._local_parts:
            spoken = read_local_part(recipient.rpartition("@")[0])
            if spoken is not None and spoken[0] is step:
                return spoken[1]
        return None

    def for_message(self, step: Step, situation: Situation, recipients: list[str]) -> Action | None:
        """The action at ``data`` or ``dot``: that of the first recipient that has one."""
        for recipient in recipients:
            action = self.at(step, situation, recipient)
            if action is not None:
                return action
        return None


def _values(situation: Situation, recipient: str) -> tuple[str, str, str, str, str, str]:
    local_part = recipient.rpartition("@")[0]
    return situation.client, situation.helo, situation.mail_from, recipient, local_part, situation.server


# --- the language of local parts -------------------------------------------------------------------

_WORD: Final = re.compile(
    r"(?:(?P<step>rcpt|data|dot)-)?"
    r"(?:(?P<code>[45][0-5][0-9])(?:-(?P<enhanced>[245]\.[0-9]{1,3}\.[0-9]{1,3}))?"
    r"|delay-(?P<delay_ms>[0-9]{1,7})"
    r"|(?P<ending>drop|reset|lose|hang))"
    r"(?P<after>-after-dot)?\Z"
)


def read_local_part(local_part: str) -> tuple[Step, Action] | None:
    """What a local part asks for; None when it is an ordinary name (or ``ok``)."""
    name, dashes, word = local_part.rpartition("--")
    if dashes:
        return _read_word(word)
    name, plus, tag = local_part.partition("+")
    spoken = _read_word(name)
    return _read_word(tag) if spoken is None and plus else spoken


def _read_word(word: str) -> tuple[Step, Action] | None:
    found = _WORD.match(word)
    if found is None:
        return None
    step_name, code, enhanced, delay_ms, ending, after = found.groups()
    if after and step_name:
        return None  # "rcpt-drop-after-dot" says two things at once
    if code:
        step = Step.DOT if after else Step(step_name or "rcpt")
        number = int(code)
        return step, Action(code=number, text=_text_for(number, enhanced), store=number < 400)
    step = Step(step_name or "dot")
    if delay_ms:
        return step, Action(delay_ms=min(int(delay_ms), DELAY_MS_MAX))
    if ending == "hang":
        return step, Action(never_answer=True, store=False)
    return step, Action(disconnect=Disconnect.BEFORE_REPLY, reset=ending == "reset", store=ending != "lose")


_TEXTS: Final = {
    421: "4.3.2 service not available, closing the connection",
    450: "4.2.1 mailbox unavailable",
    451: "4.3.0 local error, try again later",
    452: "4.3.1 insufficient storage",
    550: "5.1.1 no such user",
    551: "5.1.6 user not local",
    552: "5.2.2 mailbox full",
    553: "5.1.3 mailbox name not allowed",
    554: "5.7.1 refused",
}


def _text_for(code: int, enhanced: str | None = None) -> str:
    text = _TEXTS.get(code, f"{code // 100}.0.0 as scripted")
    return text if enhanced is None else f"{enhanced} {text.partition(' ')[2]}"


# --- reading a script file -------------------------------------------------------------------------


class _File(msgspec.Struct, forbid_unknown_fields=True):
    local_parts: bool = True
    rule: list[dict[str, Any]] = []


def read_script(path: Path, randomness: random.Random) -> Script:
    """Reads and checks a script file; BadInput names the file, the rule by number, and the key."""
    try:
        written = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise BadInput(str(path), str(error)) from error
    if len(written.rule) > RULES_MAX:
        raise BadInput(str(path), f"{len(written.rule)} rules, at most {RULES_MAX} are allowed")
    rules = tuple(_read_rule(f"{path}: rule {number}", table) for number, table in enumerate(written.rule, 1))
    return Script(rules, local_parts=written.local_parts, randomness=randomness)


def _read_rule(where: str, table: dict[str, Any]) -> Rule:
    try:
        rule = msgspec.convert(table, Rule)
    except msgspec.ValidationError as error:
        raise BadInput(where, str(error)) from error
    check_rule(where, rule)
    return rule


def check_rule(where: str, rule: Rule) -> None:
    """BadInput when a rule cannot be carried out as written; ``where`` is put before the key."""
    _check_masks(where, rule)
    if rule.code and not 200 <= rule.code <= 599:
        raise BadInput(f"{where}.code", f"{rule.code} is not a reply code (200 to 599)")
    if 0 < rule.code < 400 and not _POSITIVE[rule.step][0] <= rule.code <= _POSITIVE[rule.step][1]:
        raise BadInput(f"{where}.code", f'{rule.code} cannot answer "{rule.step}" (RFC 5321 §4.3.2)')
    if rule.text and not rule.code:
        raise BadInput(f"{where}.text", "a text needs a code")
    if len(rule.text) > TEXT_CHARS_MAX or not rule.text.isprintable() or not rule.text.isascii():
        raise BadInput(f"{where}.text", f"must be one line of at most {TEXT_CHARS_MAX} printable ASCII characters")
    if not 0 <= rule.delay_ms <= DELAY_MS_MAX:
        raise BadInput(f"{where}.delay_ms", f"{rule.delay_ms} is not within 0 and {DELAY_MS_MAX}")
    if not 0.0 < rule.odds <= 1.0:
        raise BadInput(f"{where}.odds", f"{rule.odds} is not above 0 and at most 1")
    if rule.never_answer and (rule.disconnect or rule.code):
        raise BadInput(f"{where}.never_answer", "excludes code and disconnect")
    if rule.disconnect is Disconnect.BEFORE_REPLY and rule.code:
        raise BadInput(f"{where}.disconnect", "before-reply leaves no reply to give: drop the code")
    if rule.reset and rule.disconnect is None:
        raise BadInput(f"{where}.reset", "says how to disconnect: it needs the key disconnect")
    if rule.store is not None and rule.step is not Step.DOT:
        raise BadInput(f"{where}.store", 'only at step "dot" there is a message to keep')


# The range of positive replies that a rule may give; at connect and helo the usual reply says who we are.
_POSITIVE: Final = {
    Step.CONNECT: (0, 0),
    Step.HELO: (0, 0),
    Step.STARTTLS: (0, 0),
    Step.MAIL: (200, 299),
    Step.RCPT: (200, 299),
    Step.DATA: (354, 354),
    Step.DOT: (200, 299),
}


def _check_masks(where: str, rule: Rule) -> None:
    known_from = {"recipient": Step.RCPT, "local_part": Step.RCPT, "mail_from": Step.MAIL, "helo": Step.HELO}
    for key, first in known_from.items():
        if getattr(rule, key) is not None and _ORDER[rule.step] < _ORDER[first]:
            raise BadInput(f"{where}.{key}", f'is not known yet at step "{rule.step}", only from "{first}" on')
    for key in ("recipient", "local_part", "mail_from", "helo", "client", "server"):
        if getattr(rule, key) == "":
            raise BadInput(f"{where}.{key}", "an empty mask fits nothing; leave the key out to fit all")
