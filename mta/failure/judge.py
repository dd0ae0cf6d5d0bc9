"""What a failed attempt means for its recipient: triage by code, then qualification by what was said.

======================  ==============================  ==================================================
type of the failure     reply 4yz, or none              reply 5yz
======================  ==============================  ==================================================
hard                    deferred (it never is hard)     failed; the address is quarantined
soft                    deferred                        deferred: a mailbox that is full today is not for ever
soft, but our fault     deferred                        failed: the same message would be refused again
ignored                 deferred                        failed
======================  ==============================  ==================================================

A text that nobody has qualified is soft, as in the engine we replace (campaign-mta §4): trying it again costs little,
giving up an address for a sentence that nobody knows costs the address. What is our fault (`OUR_FAULT`) is never
counted against the address; see `mta.queue.quarantine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from mta.failure.normalise import text_key
from mta.failure.qualify import within_stage
from mta.failure.scope import BY_OPERATOR, Scope, ends_with_last_path, rest_of, says_greylisting, scope_of
from mta.failure.triage import Decision
from mta.model.failure import OUR_FAULT, Category, Evidence, FailureType, Verdict
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.smtp.envelope import Stage

_KEPT: Final = 5_000  # servers say the same few sentences
_FAILURES: Final = frozenset({Status.FAILED, Status.DEFERRED})
_GREYLISTED_AT: Final = frozenset({Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.DOT})


class Qualifies(Protocol):
    """What `mta.failure.qualify.Qualifier` does."""

    def qualify(self, evidence: Evidence) -> Verdict: ...


class Amended:
    """A qualifier, and before it what operators said of single texts (by `mta.failure.normalise.text_key`)."""

    def __init__(self, qualifier: Qualifies, texts: Mapping[bytes, Verdict]) -> None:
        self._qualifier = qualifier
        self._texts = texts

    def qualify(self, evidence: Evidence) -> Verdict:
        if self._texts and (said := self._texts.get(text_key(evidence.text))) is not None:
            return within_stage(said, evidence)
        return self._qualifier.qualify(evidence)


class SaidOfText(Protocol):
    """An operator's word on a text."""

    @property
    def key(self) -> bytes: ...

    @property
    def type(self) -> FailureType: ...

    @property
    def reason(self) -> Reason: ...

    @property
    def category(self) -> Category: ...


def amended(qualifier: Qualifies, texts: Iterable[SaidOfText]) -> Amended:
    """The qualifier, and before it what operators said."""
    return Amended(qualifier, {text.key: Verdict(text.type, text.reason, text.category, BY_OPERATOR) for text in texts})


class Judge:
    """Completes decisions. Everything is kept by what was said, so that a storm of one reply costs a look-up each."""

    def __init__(self, qualifier: Qualifies) -> None:
        self._qualifier = qualifier
        self._kept: dict[tuple[Reply, Stage, str, Status, bool], Decision] = {}

    def use(self, qualifier: Qualifies) -> None:
        """From now on."""
        self._qualifier = qualifier
        self._kept.clear()

    def complete(self, decision: Decision, stage: Stage, mx_host: str, *, is_plain: bool = False) -> Decision:
        """The decision with its type, reason, category and scope; anything but a failure as it is.

        ``is_plain``: the session goes without TLS, since STARTTLS failed at the host.
        """
        status = decision.status
        if status is None or status not in _FAILURES:
            return decision
        key = (decision.reply, stage, mx_host, status, is_plain)
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            found = self._kept[key] = self._complete(decision, status, stage, mx_host, is_plain)
        return found

    def verdict(self, evidence: Evidence) -> Verdict:
        """Of a failure that was no reply in a session."""
        return self._qualifier.qualify(evidence)

    def _complete(self, decision: Decision, status: Status, stage: Stage, mx_host: str, is_plain: bool) -> Decision:
        reply = decision.reply
        if reply.code == 0 and status is Status.FAILED:
            # Nobody was asked: its content could not be made, which is no fault of the address.
            local = Verdict(FailureType.IGNORED, decision.reason, Category.OTHER)
            return decision._replace(judged=judged(local))
        verdict = self._qualifier.qualify(Evidence(reply.code, reply.enhanced, reply.text, stage.name.lower(), mx_host))
        if reply.is_permanent:
            is_worth_a_retry = verdict.type is FailureType.SOFT and verdict.category not in OUR_FAULT
            status = Status.DEFERRED if is_worth_a_retry else Status.FAILED
        else:
            status = Status.DEFERRED
        if reply.code == 0:
            return Decision(status, verdict.reason, reply, judged(verdict))
        scope = scope_of(stage, reply, verdict, is_plain=is_plain)
        return Decision(
            status,
            verdict.reason,
            reply,
            judged(verdict),
            is_greylisted=is_greylisted(reply, stage),
            is_put_off=reply.is_temporary and scope is Scope.RECIPIENT,
            is_excused=verdict.category is Category.RATE_LIMITED,
            scope=scope,
            rest=rest_of(scope, stage, reply, verdict),
            is_last_word=ends_with_last_path(scope, stage, verdict),
        )


def judged(verdict: Verdict) -> str:
    """Type and category as the log's columns hold them."""
    return f"{verdict.type:d}\t{verdict.category:d}"


def is_greylisted(reply: Reply, stage: Stage) -> bool:
    """True where a server says that it takes the same message from the same address a little later."""
    return reply.is_temporary and stage in _GREYLISTED_AT and says_greylisting(reply.text)


OF_NO_ROUTE: Final = Verdict(FailureType.SOFT, Reason.INVALID_DOMAIN, Category.INVALID_DOMAIN, "no such domain")
# Silence of name servers is no fault of the address, and mostly none of its domain.
OF_NO_ANSWER: Final = Verdict(FailureType.IGNORED, Reason.INVALID_DOMAIN, Category.UNREACHABLE, "no answer from DNS")
