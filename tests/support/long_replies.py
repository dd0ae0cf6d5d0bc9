"""A server on loopback whose replies to the final dot are far longer than any that is needed."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tests.support.hostile_server import HostileServer, Peer


class LongReplies:
    """Says 250 in 3,000 lines; 550 so to ``no@...``; and 250 in a line of 60,000 octets to ``line@...``."""

    def __init__(self) -> None:
        self.messages = 0
        self._server = HostileServer(self._play)

    @property
    def port(self) -> int:
        return self._server.port

    async def _play(self, peer: Peer) -> None:
        recipient = ""
        await peer.say("220 mx.example.test ESMTP")
        while True:
            try:
                line = await peer.hear()
            except EOFError:
                return
            match line[:4]:
                case "EHLO":
                    await peer.say(*["250-more and more"] * 300, "250 PIPELINING")
                case "RCPT":
                    recipient = line
                    await peer.say("250 ok")
                case "DATA":
                    await peer.say("354 go")
                    await peer.hear_until(".")
                    self.messages += 1
                    await self._answer(peer, recipient)
                case "QUIT":
                    await peer.say("221 bye")
                    return
                case _:
                    await peer.say("250 ok")

    async def _answer(self, peer: Peer, recipient: str) -> None:
        if "line@" in recipient:
            await peer.say("250 2.0.0 " + "x" * 60_000)
            return
        code, word = ("550", "5.7.1 no") if "no@" in recipient else ("250", "2.0.0 yes")
        await peer.say(*[f"{code}-{word}"] * 3_000, f"{code} {word}")

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.__aexit__(kind, error, trace)
