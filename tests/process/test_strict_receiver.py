"""The strict receiver is only worth its silence if it speaks up: each fault it is there for, once."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.strict_receiver import StrictReceiver

HEAD = b"Date: x\r\nFrom: a@b.example\r\nSubject: y\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@d.example>"


async def said_to(receiver: StrictReceiver, *writes: bytes) -> list[str]:
    """Each write goes out when a reply has come to the one before; the violations at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
    try:
        async with asyncio.timeout(10):
            for octets in writes:
                while (await reader.readline())[3:4] == b"-":
                    pass
                writer.write(octets)
            writer.write_eof()
            await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    return receiver.violations


async def sent_to(receiver: StrictReceiver, message: bytes, mail_from: bytes = ENVELOPE[0]) -> list[str]:
    """``message`` as it is on the wire, with its final dot."""
    commands = [b"EHLO c.example.com", mail_from, ENVELOPE[1], b"DATA"]
    return await said_to(receiver, *[command + b"\r\n" for command in commands], message, b"QUIT\r\n")


async def test_a_good_client_has_nothing_said_against_it() -> None:
    async with StrictReceiver() as receiver:
        assert await sent_to(receiver, HEAD + b"\r\n..\r\nx\r\n.\r\n") == []
        assert receiver.messages[0].octets == HEAD + b"\r\n.\r\nx\r\n"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"a\nb\r\n", "bare CR or LF"),
        (b"a\rb\r\n", "bare CR or LF"),
        (b"a\n.\nb\r\n", "bare CR or LF"),
        (b"a\r\r\n", "bare CR or LF"),
        (b"x" * 999 + b"\r\n", "999 octets in line 5"),
        (b"a\0b\r\n", "NUL"),
        (b"\xc3\xa9\r\n", "octets over 127 in the body"),
        (b".x\r\n", "without a second one"),
    ],
)
async def test_a_fault_in_a_body_is_noticed(body: bytes, fault: str) -> None:
    async with StrictReceiver("8BITMIME", read_octets=3) as receiver:
        (violation,) = await sent_to(receiver, HEAD + b"\r\n" + body + b".\r\n")
        assert fault in violation


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (b"Date: x\r\n", "no b'from'"),
        (HEAD + b"Subject: z\r\n", "b'subject' twice"),
        (HEAD + b"no header\r\n", "no header line"),
        (HEAD + b" \r\n", "a fold of nothing"),
        (HEAD + b"X: \xc3\xa9\r\n", "octets over 127 in the header"),
    ],
)
async def test_a_fault_in_a_header_is_noticed(head: bytes, fault: str) -> None:
    async with StrictReceiver() as receiver:
        (violation,) = await sent_to(receiver, head + b"\r\nx\r\n.\r\n")
        assert fault in violation


@pytest.mark.parametrize(
    ("parameter", "fault"),
    [
        (b" SIZE=1", "SIZE=1, and 45 octets came"),
        (b" SMTPUTF8", "SMTPUTF8, which was not offered"),
        (b" BODY=BINARYMIME", "the value of BODY=BINARYMIME"),
    ],
)
async def test_a_fault_in_a_parameter_is_noticed(parameter: bytes, fault: str) -> None:
    async with StrictReceiver("SIZE", "8BITMIME") as receiver:
        (violation,) = await sent_to(receiver, HEAD + b"\r\nx\r\n.\r\n", ENVELOPE[0] + parameter)
        assert fault in violation


async def test_who_does_not_wait_is_noticed() -> None:
    hello, (mail, rcpt) = b"EHLO c.example.com\r\n", (command + b"\r\n" for command in ENVELOPE)
    async with StrictReceiver(read_octets=5) as receiver:
        assert any("before the reply to b'MAIL" in what for what in await said_to(receiver, hello, mail + rcpt))
    async with StrictReceiver("PIPELINING") as receiver:
        assert await said_to(receiver, hello, mail + rcpt) == []
        violations = await said_to(receiver, hello, mail + rcpt + b"DATA\r\n" + HEAD + b"\r\n.\r\n")
        assert any("before the reply to b'DATA'" in what for what in violations)


async def test_a_chunk_of_the_wrong_length_is_noticed() -> None:
    hello, (mail, rcpt) = b"EHLO c.example.com\r\n", (command + b"\r\n" for command in ENVELOPE)
    message = HEAD + b"\r\nx\r\n"
    async with StrictReceiver("PIPELINING", "CHUNKING") as receiver:
        for octets_off, is_right in ((0, True), (-1, False), (1, False)):
            receiver.violations.clear()
            chunk = b"BDAT %d LAST\r\n" % (len(message) + octets_off) + message
            assert (await said_to(receiver, hello, mail + rcpt + chunk + b"QUIT\r\n") == []) is is_right
        assert receiver.messages[0].octets == message
        assert receiver.messages[0].by == "BDAT"
