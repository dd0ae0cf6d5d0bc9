"""What is rendered is what a strict far end keeps, octet for octet, whatever it offers and however it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import uvloop

from mta.message import Rendered, compile_content, load_content
from mta.model.limits import PART_INDEX_BITS
from mta.model.timeouts import SessionTimeouts
from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.connection import Conn
from mta.queue.installation import verp_key
from mta.queue.part import Part, Row
from mta.session.link import Link
from mta.session.open import SessionTarget, open_session
from mta.smtp.dialogue import PIPELINED_BODY_BYTES_MAX, Dialogue, Envelope, Kind, Stage, Verdict
from tests.support.hostile_server import self_signed
from tests.support.keys import ed25519_signer, is_verified, records
from tests.support.letters import (
    FIELDS,
    INTERNATIONAL,
    SAMPLES,
    SENT_AT_UNIX_S,
    Person,
    Sample,
    assert_reads_as_meant,
    date_of,
    random_samples,
)
from tests.support.node import World
from tests.support.postgres import Database
from tests.support.strict_receiver import StrictReceiver

Run = Callable[[Coroutine[Any, Any, None]], None]
MAIL_FROM = b"news@shop.example"
RECEIVE_BUFFER_OCTETS = 20_000  # less makes TCP wait for its timers
OFFERS = [
    (),
    ("8BITMIME", "SIZE"),
    ("PIPELINING",),
    ("PIPELINING", "8BITMIME", "SIZE 0"),
    ("PIPELINING", "CHUNKING", "SIZE"),
    ("PIPELINING", "CHUNKING", "8BITMIME", "SIZE 100000000"),
    ("CHUNKING", "8BITMIME", "SIZE"),
]
_PARTS = """
SELECT p.fields, p.recipients, p.append_id FROM mta.delivery_part p WHERE p.delivery_id = $1
"""
OFFER_NAMES = ["+".join(keyword.split(" ")[0] for keyword in offer) or "nothing" for offer in OFFERS]


class Letter(NamedTuple):
    """A body for one recipient."""

    recipient: bytes
    segments: Sequence[bytes]
    size_octets: int  # for SIZE
    is_transparent: bool = True
    mail_from: bytes = MAIL_FROM
    needs_8bit: bool = False
    needs_smtputf8: bool = False
    meant: tuple[Sample, Person, int] | None = None  # whose delivery has this id

    @property
    def octets(self) -> bytes:
        return b"".join(self.segments)


class Sender:
    """Listens to a link, and hands it the bodies of its letters."""

    def __init__(self, letters: Sequence[Letter]) -> None:
        self.letters = letters
        self.verdicts_seen: list[Verdict] = []
        self.is_done = asyncio.Event()
        self.cause: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def envelopes(self) -> Iterator[Envelope]:
        for token, letter in enumerate(self.letters):
            yield Envelope(
                token,
                letter.mail_from,
                (letter.recipient,),
                letter.size_octets,
                letter.needs_8bit,
                letter.needs_smtputf8,
            )

    def verdicts(self, link: Link, verdicts: list[Verdict]) -> None:
        self.verdicts_seen += verdicts
        if len(self.verdicts_seen) == len(self.letters):
            self.is_done.set()

    def bodies_due(self, link: Link, envelopes: list[Envelope]) -> None:
        for envelope in envelopes:
            letter = self.letters[envelope.token]
            link.body(envelope.token, letter.segments, is_transparent=letter.is_transparent)

    def closed(self, link: Link, cause: str) -> None:
        self.cause.set_result(cause)
        self.is_done.set()


async def send(receiver: StrictReceiver, letters: Sequence[Letter]) -> list[Verdict]:
    """All letters through one session, to its QUIT."""
    async with asyncio.timeout(30):
        session = await open_session(SessionTarget("mx.example.test", "127.0.0.1", "client.example.com", receiver.port))
        sender = Sender(letters)
        link = Link(session, Dialogue(session.extensions), sender, SessionTimeouts(), now_s=0.0)
        link.offer(sender.envelopes())
        await sender.is_done.wait()
        link.close()
        cause = await sender.cause
    assert (receiver.violations, cause) == ([], "")
    return sender.verdicts_seen


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


def letters_of(samples: Sequence[Sample], *, is_signed: bool = False) -> list[Letter]:
    """One for each person of each sample."""
    signers = [ed25519_signer()] if is_signed else []
    letters: list[Letter] = []
    for delivery_id, sample in enumerate(samples, 1):
        renderer = sample.renderer(delivery_id, *signers)
        for person in sample.people:
            number = delivery_id << 20 | len(letters)
            made = renderer.render(person.address, person.reference, person.values, number, SENT_AT_UNIX_S)
            letters.append(
                Letter(
                    person.address.encode(),
                    made.segments,
                    made.size_bytes,
                    mail_from=made.return_path,
                    needs_smtputf8=made.needs_smtputf8,
                    meant=(sample, person, delivery_id),
                )
            )
    return letters


@pytest.fixture(scope="module")
def unsigned() -> list[Letter]:
    return letters_of([*SAMPLES, *random_samples(7, 40)])


@pytest.fixture(scope="module")
def signed() -> list[Letter]:
    return letters_of([*SAMPLES, *random_samples(8, 40)], is_signed=True)


def assert_kept(receiver: StrictReceiver, letters: Sequence[Letter]) -> None:
    """Exactly the octets that were rendered, in their envelopes, in their order, by the way that is best here."""
    for message, letter in zip(receiver.messages, letters, strict=True):
        assert message.octets == letter.octets
        assert message.mail_from == letter.mail_from
        assert message.recipients == (letter.recipient,)
        assert ("SIZE" in message.parameters) is ("SIZE" in receiver.names)
        assert message.by == ("BDAT" if {"PIPELINING", "CHUNKING"} <= receiver.names else "DATA")


def assert_means_what_went_in(octets: bytes, letter: Letter, *, is_signed: bool) -> None:
    assert letter.meant is not None
    sample, person, delivery_id = letter.meant
    assert_reads_as_meant(sample, person, octets, delivery_id)
    assert is_verified(octets, records(ed25519_signer())) is is_signed


@pytest.mark.parametrize("offer", OFFERS, ids=OFFER_NAMES)
@pytest.mark.parametrize("is_signed", [False, True], ids=["unsigned", "signed"])
def test_every_kind_of_message_arrives_as_it_was_rendered(
    run: Run, offer: tuple[str, ...], is_signed: bool, unsigned: list[Letter], signed: list[Letter]
) -> None:
    letters = signed if is_signed else unsigned

    async def main() -> None:
        async with StrictReceiver(*offer) as receiver:
            verdicts = await send(receiver, letters)
            assert [verdict.kind for verdict in verdicts] == [Kind.ACCEPTED] * len(letters)
            assert_kept(receiver, letters)

    run(main())


@pytest.mark.parametrize("offer", [(), ("PIPELINING", "SIZE"), ("PIPELINING", "CHUNKING", "SIZE")], ids=str)
@pytest.mark.parametrize("is_signed", [False, True], ids=["unsigned", "signed"])
async def test_what_arrives_reads_as_it_was_meant_and_signatures_verify(
    offer: tuple[str, ...], is_signed: bool, unsigned: list[Letter], signed: list[Letter]
) -> None:
    letters = signed if is_signed else unsigned
    async with StrictReceiver(*offer) as receiver:
        await send(receiver, letters)
    for message, letter in zip(receiver.messages, letters, strict=True):
        assert_means_what_went_in(message.octets, letter, is_signed=is_signed)


@pytest.mark.parametrize("offer", [(), ("PIPELINING", "SIZE"), ("PIPELINING", "CHUNKING", "SIZE")], ids=str)
@pytest.mark.parametrize("read_octets", [7, 61, 1009])
def test_it_makes_no_difference_where_the_far_end_cuts_its_reads(
    run: Run, offer: tuple[str, ...], read_octets: int, unsigned: list[Letter]
) -> None:
    letters = [letter for letter in unsigned if letter.size_octets < 400 * read_octets][:60]

    async def main() -> None:
        async with StrictReceiver(*offer, read_octets=read_octets) as receiver:
            await send(receiver, letters)
            assert_kept(receiver, letters)

    run(main())


@pytest.mark.parametrize("offer", [(), ("PIPELINING", "SIZE"), ("PIPELINING", "CHUNKING", "SIZE")], ids=str)
def test_it_makes_no_difference_that_tls_lies_between(
    run: Run, offer: tuple[str, ...], tmp_path: Path, signed: list[Letter]
) -> None:
    async def main() -> None:
        async with StrictReceiver(*offer, tls=self_signed(tmp_path)) as receiver:
            await send(receiver, signed)
            assert receiver.verbs[:4] == ["EHLO", "STARTTLS", "EHLO", "MAIL"]
            assert_kept(receiver, signed)

    run(main())


# -- internationalised addresses, 8-bit content --------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("CHUNKING",)], ids=str)
@pytest.mark.parametrize("is_signed", [False, True], ids=["unsigned", "signed"])
def test_an_internationalised_address_goes_to_a_server_that_takes_it(
    run: Run, more: tuple[str, ...], is_signed: bool
) -> None:
    letters = letters_of([INTERNATIONAL], is_signed=is_signed)

    async def main() -> None:
        async with StrictReceiver("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE", *more) as receiver:
            await send(receiver, letters)
            assert_kept(receiver, letters)
            assert ["SMTPUTF8" in message.parameters for message in receiver.messages] == [True, True, False]
            for message, letter in zip(receiver.messages, letters, strict=True):
                assert_means_what_went_in(message.octets, letter, is_signed=is_signed)

    run(main())


def test_an_internationalised_address_is_not_sent_to_a_server_that_does_not_take_it(run: Run) -> None:
    letters = letters_of([INTERNATIONAL])

    async def main() -> None:
        async with StrictReceiver("PIPELINING", "8BITMIME", "SIZE") as receiver:
            verdicts = sorted(await send(receiver, letters))
            assert [verdict.kind for verdict in verdicts] == [Kind.REFUSED, Kind.REFUSED, Kind.ACCEPTED]
            for verdict in verdicts[:2]:
                assert verdict.stage is Stage.MAIL
                assert verdict.cause.startswith("local: ")
                assert verdict.reply is not None
                assert (verdict.reply.code, verdict.reply.enhanced) == (553, "5.6.7")
            assert_kept(receiver, letters[2:])
            assert receiver.verbs == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]

    run(main())


def test_content_of_8_bits_goes_where_8bitmime_is_offered_and_nowhere_else(run: Run) -> None:
    octets = "Subject: x\r\n\r\nGrüße\r\n.\r\n".encode()
    letter = Letter(b"ann@one.example", [octets], len(octets), is_transparent=False, needs_8bit=True)

    async def main() -> None:
        for more in ((), ("CHUNKING",)):
            async with StrictReceiver("PIPELINING", "SIZE", "8BITMIME", *more, has_headers=False) as receiver:
                await send(receiver, [letter])
                assert_kept(receiver, [letter])
                assert receiver.messages[0].parameters["BODY"] == "8BITMIME"
            async with StrictReceiver("PIPELINING", "SIZE", *more) as receiver:
                (verdict,) = await send(receiver, [letter])
                assert verdict.kind is Kind.REFUSED
                assert verdict.reply is not None
                assert verdict.reply.enhanced == "5.6.3"
                assert receiver.verbs == ["EHLO", "QUIT"]

    run(main())


# -- dots, CR and LF, cut anywhere ---------------------------------------------------------------------------------

_DOTS = b".\r\n..\r\n.x\r\na.\r\n\r\n.\r\nb\n.\nc\r.\r\r\n\n.d"
_DOTS_KEPT = b".\r\n..\r\n.x\r\na.\r\n\r\n.\r\nb\r\n.\r\nc\r\n.\r\n\r\n\r\n.d\r\n"


def every_cut(body: bytes) -> Iterator[list[bytes]]:
    """Into two and three segments at every place, and into single octets."""
    for at in range(len(body) + 1):
        yield [body[:at], body[at:]]
    for first, second in combinations(range(1, len(body)), 2):
        yield [body[:first], body[first:second], body[second:]]
    yield [body[at : at + 1] for at in range(len(body))]


@pytest.mark.parametrize("offer", [(), ("PIPELINING", "SIZE"), ("PIPELINING", "CHUNKING", "SIZE")], ids=str)
def test_a_body_cut_anywhere_arrives_as_its_lines(run: Run, offer: tuple[str, ...]) -> None:
    letters = [
        Letter(b"to-%d@one.example" % number, segments, len(_DOTS_KEPT), is_transparent=False)
        for number, segments in enumerate(every_cut(_DOTS))
    ]

    async def main() -> None:
        async with StrictReceiver(*offer, has_headers=False) as receiver:
            await send(receiver, letters)
            assert [message.octets for message in receiver.messages] == [_DOTS_KEPT] * len(letters)
            assert [message.recipients for message in receiver.messages] == [(one.recipient,) for one in letters]

    run(main())


@pytest.mark.parametrize("offer", [(), ("PIPELINING", "CHUNKING")], ids=str)
@pytest.mark.parametrize("read_octets", [1, 2, 3, 5])
def test_reads_cut_anywhere_in_dots_make_no_difference(run: Run, offer: tuple[str, ...], read_octets: int) -> None:
    letters = [
        Letter(b"ann@one.example", segments, len(_DOTS_KEPT), is_transparent=False)
        for segments in list(every_cut(_DOTS))[: len(_DOTS) + 1]
    ]

    async def main() -> None:
        async with StrictReceiver(*offer, has_headers=False, read_octets=read_octets) as receiver:
            await send(receiver, letters)
            assert [message.octets for message in receiver.messages] == [_DOTS_KEPT] * len(letters)

    run(main())


@pytest.mark.parametrize("offer", [(), ("PIPELINING", "CHUNKING", "SIZE")], ids=str)
def test_a_large_body_of_nothing_but_dots_survives_every_buffer(run: Run, offer: tuple[str, ...]) -> None:
    """Over the three shifts a dot, a CR and a LF stand at every boundary of every buffer there is."""
    octets = PIPELINED_BODY_BYTES_MAX + RECEIVE_BUFFER_OCTETS
    bodies = [b"x" * shift + b".\r\n" * (octets // 3) for shift in range(3)]
    letters = [
        Letter(
            b"ann@one.example",
            [body[at : at + 65536] for at in range(0, octets, 65536)],
            len(body),
            is_transparent=False,
        )
        for body in bodies
    ]

    async def main() -> None:
        async with StrictReceiver(*offer, has_headers=False, receive_buffer_octets=RECEIVE_BUFFER_OCTETS) as receiver:
            await send(receiver, letters)
            assert [message.octets for message in receiver.messages] == bodies

    run(main())


# -- the whole daemon ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offer", [("SIZE",), ("PIPELINING", "CHUNKING", "8BITMIME", "SIZE")], ids=str)
async def test_a_delivery_arrives_as_a_renderer_makes_it(
    tmp_path: Path, database: Database, offer: tuple[str, ...]
) -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "all at once")
    content_json = msgspec.json.encode({"sender": sample.content.sender, "subject": "Größe {{a}}", **sample.keys})
    people = [
        Person(f"u{number}@d{number % 3}.test", (f"Ann {number}", "." * number, "é?&= " * number), f"r/{number}")
        for number in range(20)
    ]
    async with World(tmp_path, database) as world, StrictReceiver(*offer) as receiver:
        node = world.node()
        node.config.write_text(node.config.read_text().replace(f"port = {world.sink.port}", f"port = {receiver.port}"))
        async with database.pool.acquire() as conn:
            delivery_id = await deliveries.create(conn, deliveries.NewDelivery(name="wire", content=content_json))
            rows: list[Row] = [(person.address, person.reference, list(person.values)) for person in people]
            await append_parts(conn, delivery_id, [Part("a", FIELDS, rows[:13]), Part("b", FIELDS, rows[13:])])
            await deliveries.seal(conn, delivery_id)
            await deliveries.start(conn, delivery_id)
            by_hand = await renderers(conn, delivery_id, content_json)
        await node.start()
        assert (await world.wait_for(delivery_id)).delivered == len(people)
        assert await node.stop() == 0
        assert receiver.violations == []
    kept = {message.recipients[0]: message for message in receiver.messages}
    assert len(kept) == len(receiver.messages) == len(people) == len(by_hand)
    for recipient, render in by_hand.items():
        rendered = render(date_of(kept[recipient].octets))  # of the hand-out, which nobody else knows
        assert kept[recipient].octets == b"".join(rendered.segments)
        assert kept[recipient].mail_from == rendered.return_path
        assert int(kept[recipient].parameters["SIZE"]) == rendered.size_bytes


async def renderers(conn: Conn, delivery_id: int, content_json: bytes) -> dict[bytes, Callable[[int], Rendered]]:
    """What makes each recipient's message of a date, from what the database says of parts and their recipients."""
    template = compile_content(
        load_content(content_json, "content"), delivery_id=delivery_id, verp_key=await verp_key(conn)
    )
    made: dict[bytes, Callable[[int], Rendered]] = {}
    for part in await conn.fetch(_PARTS, delivery_id):
        renderer = template.bind(part["fields"])
        for position, (address, reference, values) in enumerate(json.loads(part["recipients"])):
            number = (part["append_id"] << PART_INDEX_BITS) + position
            made[address.encode()] = partial(renderer.render, address, reference, values, number)
    return made
