"""A server of SMTP that behaves as its dice say, and knows what it has truly taken.

It keeps the rules where the dice say nothing else. Its faults are those of real servers (commands lost or refused that
come with the end of a message, transactions kept after a refusal, RSETs and messages counted) and of none: replies
malformed, doubled, early, late, cut anywhere, of the wrong kind, endless; silence; the end of the connection anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.virtual_loop import VirtualLoop, VirtualTransport

LOST = "lost"  # in the place of a reply: nothing is said, the command is as if it never came


@dataclass
class Temper:
    """How a server is: drawn once, holds for all of its sessions in a run."""

    keywords: list[str] = field(default_factory=list)
    refuses: float = 0.0  # share of commands answered by 4yz or 5yz
    confuses: float = 0.0  # by 503
    breaks: float = 0.0  # by something that is no good reply
    ends: float = 0.0  # by 421, a close or silence
    slow_s: float = 0.0  # longest wait before a reply
    cuts: bool = False  # replies come in pieces
    behind_end: str = ""  # what becomes of commands that come with the end of a message: "", lost, partly, 503
    keeps_refused: bool = False  # a transaction that was refused at the dot is open still
    resets_max: int = 1 << 30
    messages_max: int = 1 << 30
    too_many: bytes = b""  # said to MAIL after so many messages
    half_behind_354: float = 0.0
    lies: bool = False  # doubles replies, speaks unasked

    @property
    def is_good(self) -> bool:
        return self == Temper(keywords=self.keywords)


def draw_temper(dice: random.Random) -> Temper:
    keywords = [word for word, share in KEYWORDS if dice.random() < share]
    temper = Temper(keywords)
    if dice.random() < 0.15:
        return temper
    for name in ("refuses", "confuses", "breaks", "ends", "half_behind_354"):
        if dice.random() < 0.35:
            setattr(temper, name, dice.choice((0.02, 0.1, 0.4)))
    if dice.random() < 0.4:
        temper.slow_s = dice.choice((0.05, 2.0, 40.0))
    temper.cuts = dice.random() < 0.5
    if dice.random() < 0.3:
        temper.behind_end = dice.choice((LOST, "partly", "503"))
    temper.keeps_refused = dice.random() < 0.15
    if dice.random() < 0.3:
        temper.resets_max = dice.choice((0, 1, 3, 10))
    if dice.random() < 0.2:
        temper.messages_max = dice.choice((0, 1, 2, 5))
        temper.too_many = dice.choice(TOO_MANY)
    temper.lies = dice.random() < 0.12
    return temper


KEYWORDS = (
    ("PIPELINING", 0.75),
    ("CHUNKING", 0.4),
    ("8BITMIME", 0.5),
    ("ENHANCEDSTATUSCODES", 0.4),
    ("SIZE", 0.2),
    ("SIZE 1000000", 0.4),
    ("SIZE 400", 0.05),
    ("LIMITS MAILMAX=1", 0.05),
    ("LIMITS MAILMAX=2", 0.1),
    ("LIMITS RCPTDOMAINMAX=1", 0.1),
    ("LIMITS RCPTDOMAINMAX=2 MAILMAX=3", 0.08),
    ("LIMITS RCPTMAX=1", 0.08),
    ("LIMITS MAILMAX=0", 0.03),
    ("=?", 0.05),
    ("x" * 2_000, 0.03),
)
TOO_MANY = (b"452 4.4.5 too many messages", b"421 4.7.0 bye", b"550 too many", b"503 enough")
REFUSALS = (
    b"450 4.2.1 later",
    b"451 4.3.0 try again later",
    b"452 4.5.3 too many recipients",
    b"452 full",
    b"550 5.1.1 no such user",
    b"554 5.7.1 go away",
    b"552 5.2.2 over quota",
    b"530 5.7.0 Must issue STARTTLS",
    b"500 5.5.2 what",
)
DISORDER = (b"503 5.5.1 bad sequence", b"503 need MAIL first", b"554 5.5.1 nested MAIL", b"503 RCPT first")
BROKEN = (
    b"junk",
    b"999 x",
    b"25",
    b"250-a\r\n251 b",
    b"2500 ok",
    b"",
    b"354 what",
    b"250 yes",
    b"299 odd",
    b"350 odd",
    b"250\xff\xfe",
)


class RandomServer:
    """One connection. `accepted` and what else it counts is shared by all of a run."""

    def __init__(
        self, loop: VirtualLoop, dice: random.Random, temper: Temper, written: Callable[[bytes], None]
    ) -> None:
        self._loop = loop
        self._dice = dice
        self.temper = self._temper = temper
        self._written = written
        self._transport: VirtualTransport | None = None
        self._buffer = b""
        self._is_mute = False  # says nothing more
        self._says_at_s = 0.0
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._body: bytearray | None = None  # DATA: since 354
        self._bdat_left = -1
        self._with_end = False  # what is read came with the end of a message
        self._lost_of_group = 0
        self.session = 0  # of the child
        self.resets = 0
        self.messages = 0
        self.has_lied = False  # its replies are no answers to commands any more
        self.accepted: list[tuple[str, bytes]] = []  # recipient and body, each time that 2yz was decided on
        self.said: list[str] = []  # the dialogue, for whoever has to read it

    # -- FarEnd ------------------------------------------------------------------------------------------------

    def connected(self, transport: VirtualTransport) -> None:
        self._transport = transport
        transport.written = self._written
        if self._temper.ends and self._dice.random() < 0.05:
            transport.takes_bytes = self._dice.randrange(3_000)
            if self._dice.random() < 0.7:
                self._loop.call_later(self._dice.random() * 60, transport.take, 1 << 40)
        self._reply("greeting", b"220 mx.example.test ESMTP")

    def received(self, data: bytes) -> None:
        self._buffer += data
        dice = self._dice
        if self._temper.ends and dice.random() < 0.01:
            self._hang_up()
            return
        self._with_end = False
        while self._buffer and not self._is_mute:
            if self._bdat_left >= 0:
                take = min(self._bdat_left, len(self._buffer))
                assert self._body is not None
                self._body += self._buffer[:take]
                self._buffer = self._buffer[take:]
                self._bdat_left -= take
                if self._bdat_left:
                    return
                self._bdat_left = -1
                self._finish(bytes(self._body), is_chunk=True)
            elif self._body is not None:
                if not self._read_data():
                    return
            elif b"\r\n" in self._buffer:
                line, self._buffer = self._buffer.split(b"\r\n", 1)
                self._command(line.decode("latin-1"))
            else:
                return

    def client_left(self) -> None:
        self._is_mute = True

    # -- commands ----------------------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        self.said.append(f"{self._loop.time():9.3f} C {line}")
        verb = line.split(" ")[0].upper()
        if self._with_end and self._temper.behind_end and verb in ("MAIL", "RCPT", "DATA", "RSET", "QUIT"):
            if self._temper.behind_end == LOST or (self._temper.behind_end == "partly" and verb == "MAIL"):
                self.said.append(f"{'':9} - lost")
                return
            self._reply(verb, b"503 5.5.1 bad sequence of commands")
            return
        match verb:
            case "EHLO" | "HELO":
                keywords = [b"250-" + word.encode() for word in self._temper.keywords] if verb == "EHLO" else []
                self._reply(verb, b"\r\n".join([b"250-mx.example.test", *keywords, b"250 OK"]))
            case "MAIL":
                self._mail(line)
            case "RCPT":
                self._rcpt(line)
            case "DATA":
                self._data()
            case "BDAT":
                self._bdat_left = int(line.split(" ")[1])
                self._body = bytearray()
            case "RSET":
                self._reset()
            case "QUIT":
                self._reply(verb, b"221 2.0.0 bye")
                self._loop.call_later(max(0.0, self._says_at_s - self._loop.time()), self._hang_up)
            case _:
                self._reply(verb, b"500 5.5.2 unknown command")

    def _mail(self, line: str) -> None:
        if self.messages >= self._temper.messages_max:
            self._say(self._temper.too_many)
            if self._temper.too_many.startswith(b"421"):
                self._hang_up_soon()
            return
        if self._sender is not None:
            self._reply("MAIL", b"503 5.5.1 nested MAIL")
        elif self._reply("MAIL", b"250 2.1.0 ok"):
            self._sender, self._recipients = line[11:].split(">")[0], []

    def _rcpt(self, line: str) -> None:
        if self._sender is None:
            self._reply("RCPT", b"503 5.5.1 need MAIL first")
        elif self._reply("RCPT", b"250 2.1.5 ok"):
            self._recipients.append(line[9:].split(">")[0])

    def _data(self) -> None:
        if not self._recipients:
            self._reply("DATA", self._dice.choice((b"554 5.5.1 no valid recipients", b"503 RCPT first")))
        elif self._reply("DATA", b"354 go"):
            self._body = bytearray()

    def _reset(self) -> None:
        self.resets += 1
        if self.resets > self._temper.resets_max:
            self._say(b"554 5.5.0 too many nonmail commands")
            self._hang_up_soon()
        elif self._reply("RSET", b"250 2.0.0 flushed"):
            self._sender, self._recipients = None, []

    def _read_data(self) -> bool:
        """True when the body is at its end."""
        assert self._body is not None
        self._body += self._buffer
        self._buffer = b""
        if self._body.startswith(b".\r\n"):
            end = 0
        elif (at := self._body.find(b"\r\n.\r\n")) >= 0:
            end = at + 2
        else:
            return False
        body, self._buffer = bytes(self._body[:end]), bytes(self._body[end + 3 :])
        self._finish(body, is_chunk=False)
        return True

    def _finish(self, body: bytes, *, is_chunk: bool) -> None:
        self._body = None
        self._with_end = True
        self.said.append(f"{self._loop.time():9.3f} C ({len(body)} octets of content)")
        if not self._recipients:
            self._reply("DOT", b"503 5.5.1 no valid recipients")
            return
        taken = self._reply("DOT", b"250 2.0.0 queued")
        if taken:
            self.messages += 1
            self.resets = 0
            self.accepted += [(recipient, body) for recipient in self._recipients]
            self.said.append(f"{'':9} = taken for {', '.join(self._recipients)}")
        if taken or not (is_chunk or self._temper.keeps_refused):
            self._sender, self._recipients = None, []

    # -- replies -----------------------------------------------------------------------------------------------

    def _reply(self, event: str, good: bytes) -> bool:
        """Says ``good``, or what the dice want; True when it was that, or means the same to whoever reads it."""
        dice, temper = self._dice, self._temper
        if good[:1] in b"45" and event != "greeting":
            self._say(good)
            return False
        if temper.ends and dice.random() < temper.ends / 4:
            return self._end_instead(good)
        if temper.breaks and dice.random() < temper.breaks / 2:
            said = dice.choice(BROKEN)
            self._say(said)
            return said[:1] == good[:1] and said[3:4] in b" -" and not said.startswith(b"250-a")
        if temper.confuses and event not in ("greeting", "EHLO") and dice.random() < temper.confuses:
            self._say(dice.choice(DISORDER))
            return False
        if temper.refuses and dice.random() < temper.refuses:
            self._say(dice.choice(REFUSALS))
            return False
        if temper.breaks and dice.random() < 0.05:
            good = self._lengthened(good)
        if event == "DATA" and dice.random() < temper.half_behind_354:
            self.has_lied |= temper.cuts  # where it comes alone, later, it is the beginning of the next reply
            self._say(good + b"\r\n250 half of a", b"")
        else:
            self._say(good)
        if temper.lies and dice.random() < 0.1:
            self.has_lied = True
            self._say(dice.choice((good, b"250 2.0.0 by the way", b"421 4.4.2 bored", b"550 5.0.0 no")))
        return True

    def _end_instead(self, good: bytes) -> bool:
        match self._dice.randrange(4):
            case 0:
                self._say(b"421 4.3.2 closing")
                self._hang_up_soon()
                return False
            case 1:
                self._hang_up()  # before it was decided
                return False
            case 2:
                self._is_mute = True  # decided, and never said
                return True
        self._say(good[: self._dice.randrange(len(good))], b"")  # decided, and said in part
        self._hang_up_soon()
        return True

    def _lengthened(self, good: bytes) -> bytes:
        code, text = good[:3], good[4:]
        match self._dice.randrange(3):
            case 0:
                return (code + b"-more and more\r\n") * self._dice.choice((2, 300, 3_000)) + code + b" " + text
            case 1:
                return code + b" " + text + b"x" * self._dice.choice((9_000, 70_000))
        return code + b"-" + b"y" * 40_000 + b"\r\n" + code + b" " + text

    def _say(self, line: bytes, end: bytes = b"\r\n") -> None:
        if self._is_mute:
            return
        dice = self._dice
        self.said.append(f"{self._loop.time():9.3f} S {line[:60].decode('latin-1')!r}")
        octets = line + end
        pieces = [octets]
        if self._temper.cuts and len(octets) > 1:
            at = dice.randrange(1, len(octets))
            pieces = [octets[:at], octets[at:]]
        for piece in pieces:
            wait_s = dice.random() * self._temper.slow_s if self._temper.slow_s else 0.0
            # Never at the same time as what was said before: the loop has no order for that.
            self._says_at_s = max(self._says_at_s, self._loop.time()) + wait_s + 1e-6
            assert self._transport is not None
            self._loop.call_at(self._says_at_s, self._transport.deliver, piece)

    def _hang_up_soon(self) -> None:
        self._is_mute = True
        self._loop.call_at(max(self._says_at_s, self._loop.time()), self._hang_up)

    def _hang_up(self) -> None:
        self._is_mute = True
        if self._transport is not None:
            is_reset = self._dice.random() < 0.5
            self._transport.hang_up(ConnectionResetError(104, "Connection reset by peer") if is_reset else None)
