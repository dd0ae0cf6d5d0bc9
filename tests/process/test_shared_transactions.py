"""Recipients of a simulated delivery in one transaction: a real carrier and a connection to a strict receiver."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from mta.child.carrier import Carrier
from mta.child.letters import BatchCursor, Letter
from mta.child.session_watch import SessionWatch
from mta.child.templates import Templates
from mta.failure.judge import Judge
from mta.failure.qualify import Qualifier
from mta.failure.triage import Decision
from mta.model.outcome import Status
from mta.model.reply import Reply
from mta.model.timeouts import SessionTimeouts
from mta.smtp.envelope import Envelope, Stage
from mta.wire import Batch, BatchPart, ChildFrame, Open, Opened, SessionClosed, SigningKeys, Template
from tests.support.content import content_json
from tests.support.node import until
from tests.support.strict_receiver import StrictReceiver

PIPELINING = ("PIPELINING", "SIZE 1000000", "8BITMIME", "SMTPUTF8")
LOCKSTEP = ("SIZE 1000000",)
TEST, REAL = 1, 2  # deliveries


class Ledger:
    """The carrier's crew: makes letters, and keeps what becomes of each."""

    def __init__(self) -> None:
        self.letters: dict[int, Letter] = {}
        self.judge = Judge(Qualifier(()))
        self.watch = SessionWatch()
        self.may_begin = True
        self.ca_file = ""
        self.settled: list[tuple[str, Status | None, str]] = []  # address, status, text of the reply
        self.refusals: list[tuple[str, Stage, int]] = []
        self.returned: list[tuple[str, Stage, int]] = []  # for a refusal of the path
        self.given_back: list[int] = []  # positions
        self.told: list[ChildFrame] = []
        self.carrier: Carrier | None = None
        self._tokens = 0
        self._templates = Templates()
        self._templates.take_keys(SigningKeys(False, []))
        self._templates.add(Template(TEST, content_json(text="Dear {{first}}"), is_simulated=True), bytes(32))
        self._templates.add(Template(REAL, content_json(text="Dear {{first}}")), bytes(32))

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def next_token(self) -> int:
        self._tokens += 1
        return self._tokens

    def settle(self, letter: Letter, decision: Decision) -> None:
        self.settled.append((letter.address, decision.status, decision.reply.text))

    def refused(self, letter: Letter, reply: Reply, stage: Stage) -> None:
        self.refusals.append((letter.address, stage, reply.code))

    def path_refused(self, letter: Letter, decision: Decision, stage: Stage) -> None:
        self.returned.append((letter.address, stage, decision.reply.code))

    def give_back(self, batch: Batch, part: BatchPart, position: int, limit: str) -> None:
        self.given_back.append(position)

    def bodies_due(self, carrier: Carrier, envelopes: list[Envelope]) -> None:
        for envelope in envelopes:
            letter = self.letters[envelope.token]
            segments, letter.segments = letter.segments, None
            assert segments is not None
            assert carrier.link is not None
            carrier.link.body(envelope.token, segments, is_transparent=True)

    def tell(self, frame: ChildFrame) -> None:
        self.told.append(frame)

    def forget(self, carrier: Carrier) -> None:
        self.carrier = None

    def render_fault(self, letter: Letter, fault: BaseException | None) -> None:
        raise AssertionError(f"message {letter.number} could not be made") from fault

    def session_fault(self, carrier: Carrier, fault: Exception) -> None:
        raise fault

    def cursor(self, addresses: Sequence[str], delivery: int = TEST, values: Sequence[object] = ()) -> BatchCursor:
        """``values``: instead of a proper one for each recipient."""
        given = values or [["Ann"]] * len(addresses)
        rows = json.dumps([[address, None, value] for address, value in zip(addresses, given, strict=True)])
        positions = list(range(len(addresses)))
        part = BatchPart(1, 1, 1_700_000_000, positions, [1_000 + position for position in positions])
        batch = Batch(1, 1, delivery, ("first",), [part], rows.encode())
        renderer = self._templates.renderer(batch)
        assert renderer is not None
        return BatchCursor(batch, renderer, is_simulated=self._templates.is_simulated(delivery))

    @property
    def statuses(self) -> dict[str, Status | None]:
        found = {address: status for address, status, _ in self.settled}
        assert len(found) == len(self.settled), "settled twice"
        return found


@asynccontextmanager
async def carrying(receiver: StrictReceiver, together: int, *, pipelining: bool = True) -> AsyncIterator[Ledger]:
    """A ledger whose carrier has an open session."""
    ledger = Ledger()
    order = Open(
        session=1,
        site="mx.test",
        mx_host="mx.test",
        peer="127.0.0.1",
        port=receiver.port,
        egress="default",
        limit="r|1",
        source=None,
        helo="client.example.com",
        tls="disabled",
        pipelining=pipelining,
        chunking=True,
        recipients_per_transaction_max=together,
        timeouts=SessionTimeouts(),
    )
    carrier = ledger.carrier = Carrier(ledger, order)
    await carrier.open()
    assert [type(frame) for frame in ledger.told] == [Opened]
    yield ledger
    if ledger.carrier is not None:
        carrier.close()
        await until("the session is closed", lambda: ledger.carrier is None, 10)
    assert ledger.letters == {}
    assert receiver.violations == []


async def run(ledger: Ledger, *cursors: BatchCursor) -> None:
    """Hands the batches over at once, and waits until all of them are worked off."""
    carrier = ledger.carrier
    assert carrier is not None
    count = sum(map(len, cursors)) + len(ledger.settled) + len(ledger.given_back)
    carrier.batches.extend(cursors)
    carrier.feed()
    await until("all are settled", lambda: len(ledger.settled) + len(ledger.given_back) == count, 10)


def asked(receiver: StrictReceiver) -> list[list[str]]:
    """Local parts by transaction."""
    return [[address.partition("@")[0] for address, _ in one.asked] for one in receiver.transactions]


def names(text: str, domain: str = "a.test") -> list[str]:
    return [f"{name}@{domain}" for name in text.split()]


@pytest.mark.parametrize("offer", [PIPELINING, LOCKSTEP], ids=["pipelining", "lockstep"])
async def test_so_many_share_a_transaction_and_each_has_its_own_outcome(offer: tuple[str, ...]) -> None:
    answers = {"c": "550 5.1.1 no such user", "d": "451 4.7.1 later"}
    async with StrictReceiver(*offer, answers=answers) as receiver, carrying(receiver, 3) as ledger:
        # Batches are no border, deliveries are.
        await run(ledger, ledger.cursor(names("a b")), ledger.cursor(names("c d e f g")))
        assert asked(receiver) == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
        assert ledger.statuses == {
            **dict.fromkeys(names("a b e f g"), Status.SIMULATED),
            "c@a.test": Status.FAILED,
            "d@a.test": Status.DEFERRED,
        }
        assert ledger.refusals == [("c@a.test", Stage.RCPT, 550), ("d@a.test", Stage.RCPT, 451)]
        # The return path is that of the first recipient, so no two transactions share one.
        assert len({one.mail_from for one in receiver.transactions}) == 3
    assert Counter(receiver.verbs) == {"EHLO": 1, "MAIL": 3, "RCPT": 7, "RSET": 2, "QUIT": 1}


async def test_by_default_each_recipient_has_a_transaction_of_its_own() -> None:
    async with StrictReceiver(*PIPELINING) as receiver, carrying(receiver, 1) as ledger:
        await run(ledger, ledger.cursor(names("a b c")))
        assert asked(receiver) == [["a"], ["b"], ["c"]]


async def test_a_message_always_has_one_of_its_own() -> None:
    async with StrictReceiver(*PIPELINING) as receiver, carrying(receiver, 100) as ledger:
        await run(
            ledger, ledger.cursor(names("a b"), REAL), ledger.cursor(names("c d")), ledger.cursor(names("e f"), REAL)
        )
        assert asked(receiver) == [["a"], ["b"], ["c", "d"], ["e"], ["f"]]
        assert [message.recipients for message in receiver.messages] == [(name.encode(),) for name in names("a b e f")]
        assert Counter(ledger.statuses.values()) == {Status.DELIVERED: 4, Status.SIMULATED: 2}


async def test_a_letter_that_cannot_be_made_fails_alone() -> None:
    async with StrictReceiver(*PIPELINING) as receiver, carrying(receiver, 10) as ledger:
        await run(ledger, ledger.cursor(names("a b c d"), values=[[], ["Bo"], 7, ["Di"]]))
        assert asked(receiver) == [["b", "d"]]
        assert [text for _, status, text in ledger.settled if status is Status.FAILED] == [
            "local: values: there are 0, for 1 fields",
            "local: values: are not a list of texts",
        ]
        assert ledger.statuses["b@a.test"] is ledger.statuses["d@a.test"] is Status.SIMULATED


async def test_what_one_needs_and_the_server_does_not_offer_is_refused_to_that_one() -> None:
    async with StrictReceiver("PIPELINING") as receiver, carrying(receiver, 10) as ledger:
        await run(ledger, ledger.cursor(names("a b zoë c")))
        assert asked(receiver) == [["a", "b"], ["c"]]
        assert Counter(ledger.statuses.values()) == {Status.SIMULATED: 3, Status.FAILED: 1}
        assert ledger.statuses["zoë@a.test"] is Status.FAILED
    async with StrictReceiver(*PIPELINING) as receiver, carrying(receiver, 10) as ledger:
        await run(ledger, ledger.cursor(names("a b zoë c")))
        assert asked(receiver) == [["a", "b", "zoë", "c"]]
        assert "SMTPUTF8" in receiver.transactions[0].parameters


async def test_a_message_over_the_size_announced_holds_up_no_other() -> None:
    size_max = 2_000
    async with StrictReceiver("PIPELINING", f"SIZE {size_max}") as receiver, carrying(receiver, 10) as ledger:
        values = [["Ann"], ["Bo " * 20], ["x " * size_max], ["Di " * 10]]
        await run(ledger, ledger.cursor(names("a b c d"), values=values))
        assert asked(receiver) == [["a", "b"], ["d"]]
        assert ledger.statuses["c@a.test"] is Status.FAILED
        # What is announced is the largest of them.
        first, second = [int(one.parameters["SIZE"]) for one in receiver.transactions]
        assert second < first < size_max


async def test_a_server_that_takes_fewer_loses_nobody_and_is_asked_for_so_many_from_then_on() -> None:
    async with StrictReceiver(*PIPELINING, recipients_max=2) as receiver, carrying(receiver, 5) as ledger:
        await run(ledger, ledger.cursor(names("a b c d e f g h")))
        assert asked(receiver) == [["a", "b", "c", "d", "e"], ["f", "g"], ["h"]]
        # None: handed out again, without an attempt.
        assert ledger.statuses == {
            **dict.fromkeys(names("a b f g h"), Status.SIMULATED),
            **dict.fromkeys(names("c d e"), None),
        }
        assert ledger.refusals == []  # that is no refusal that an automation may act on
    async with StrictReceiver(*PIPELINING, "LIMITS RCPTMAX=2") as receiver, carrying(receiver, 5) as ledger:
        await run(ledger, ledger.cursor(names("a b c")))
        assert asked(receiver) == [["a", "b"], ["c"]]
        assert set(ledger.statuses.values()) == {Status.SIMULATED}


async def test_domains_are_as_many_in_a_session_as_the_server_allows() -> None:
    offer = (*PIPELINING, "LIMITS RCPTDOMAINMAX=1")
    async with StrictReceiver(*offer) as receiver, carrying(receiver, 10) as ledger:
        addresses = [*names("a b"), *names("c", "b.test"), *names("d")]
        await run(ledger, ledger.cursor(addresses))
        assert asked(receiver) == [["a", "b"]]
        assert Counter(ledger.statuses.values()) == {Status.SIMULATED: 2, None: 2}
        await run(ledger, ledger.cursor(names("e")), ledger.cursor(names("f", "b.test"), REAL))
        assert asked(receiver) == [["a", "b"], ["e"]]
        await until("the session has ended", lambda: ledger.carrier is None)
        assert ledger.told[-1] == SessionClosed(1, "")
        assert (ledger.statuses["e@a.test"], ledger.statuses["f@b.test"]) == (Status.SIMULATED, None)


@pytest.mark.parametrize("offer", [PIPELINING, LOCKSTEP], ids=["pipelining", "lockstep"])
@pytest.mark.parametrize("answer", ["421 4.7.0 enough", ""], ids=["421", "lost"])
async def test_an_end_in_the_middle_is_nobodys_attempt(offer: tuple[str, ...], answer: str) -> None:
    async with StrictReceiver(*offer, answers={"c": answer}) as receiver, carrying(receiver, 5) as ledger:
        await run(ledger, ledger.cursor(names("a b c d e f")))
        assert asked(receiver) == [["a", "b", "c"]]
        assert ledger.statuses == {
            **dict.fromkeys(names("a b"), Status.SIMULATED),
            **dict.fromkeys(names("c d e"), None),
        }
        assert ledger.given_back == [5]
        # One reply, one refusal.
        assert ledger.refusals == ([("c@a.test", Stage.RCPT, 421)] if answer else [])


async def test_a_refused_mail_is_one_refusal_and_concerns_all() -> None:
    async with (
        StrictReceiver(*PIPELINING, sender_answer="550 5.7.1 not you") as receiver,
        carrying(receiver, 3) as ledger,
    ):
        await run(ledger, ledger.cursor(names("a b c d")))
        assert set(ledger.statuses.values()) == {None}  # it is about our path: another may take them
        assert ledger.returned == [(address, Stage.MAIL, 550) for address in names("a b c d")]
        assert ledger.refusals == [("a@a.test", Stage.MAIL, 550), ("d@a.test", Stage.MAIL, 550)]


async def test_what_is_recalled_goes_back_and_what_is_under_way_is_finished() -> None:
    async with StrictReceiver(*LOCKSTEP) as receiver, carrying(receiver, 3) as ledger:
        carrier = ledger.carrier
        assert carrier is not None
        carrier.add(ledger.cursor(names("a b c d e")))
        carrier.recall(TEST, set(ledger.letters))
        assert ledger.given_back == [3, 4]
        await until("all of the transaction are", lambda: len(ledger.settled) == 3, 10)
        assert asked(receiver) == [["a", "b", "c"]]


async def test_nothing_is_begun_while_it_may_not() -> None:
    async with StrictReceiver(*PIPELINING) as receiver, carrying(receiver, 3) as ledger:
        ledger.may_begin = False
        carrier = ledger.carrier
        assert carrier is not None
        carrier.add(ledger.cursor(names("a b")))
        carrier.recall(TEST, set())
        ledger.may_begin = True
        await run(ledger, ledger.cursor(names("c d")))
        assert asked(receiver) == [["c", "d"]]
        assert ledger.given_back == [0, 1]
