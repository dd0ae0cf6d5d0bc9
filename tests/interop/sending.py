"""The product beside a remote server: a real daemon and database, and what it says became of each recipient."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import asyncpg

from mta.message import Renderer, compile_content, load_content
from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.deliveries import NewDelivery
from mta.queue.installation import verp_key
from mta.queue.part import Part
from mta.sink.nameserver import ThreadedNameserver
from tests.interop.place import (
    DOMAIN,
    PORT,
    REFUSE,
    REFUSE_HEADER,
    REFUSED,
    SENDER_ADDRESS,
    SENDER_DOMAIN,
    SENDER_HOST,
    UNKNOWN,
    USERS,
    Place,
    dns_zones,
)
from tests.support.keys import ed25519_pem, ed25519_signer, rsa_pem, rsa_signer
from tests.support.node import Node, World

DNS_PORT = 53
FIELDS = ("first", "verdict")
# Everything that some program on the way takes for its own: dots, blanks at line ends, octets over 127, long lines.
# Not From_, which any mbox changes: `tests.interop.habits` looks at that.
TEXT = (
    "Dear {{first}},\n.\n..\n.dots\n\nblanks at the end   \n\ttab\t\n"
    + "a long line " * 100
    + "\nGröße, naïve, 日本\n\nend\n\n"
)
HTML = "<p>Dear {{first}},</p>\n<p>Größe</p>\n" + "<p>A paragraph of HTML</p>\n" * 100


def content() -> bytes:
    """Of the delivery that all servers get."""
    return json.dumps(
        {
            "sender": f'"Größe & Söhne" <news@{SENDER_DOMAIN}>',
            "subject": "{{first}}, your Größe: a subject that is long enough to be folded, over two lines",
            "to_name": "{{first}}",
            "text": TEXT,
            "html": HTML,
            "headers": {REFUSE_HEADER: "{{verdict}}", "List-Id": "<news.shop.example>"},
        }
    ).encode()


def recipients() -> list[tuple[str, list[str]]]:
    """(local part, values): good and unknown ones in turns, and amidst them one that is refused at the dot."""
    mixed = list(itertools.chain.from_iterable(zip(USERS, UNKNOWN, strict=True)))
    mixed.insert(len(mixed) // 2 + 1, REFUSED)
    return [(name, [f"Ämilie {name}", REFUSE if name == REFUSED else "accept"]) for name in mixed]


@dataclass
class RemoteWorld(World):
    """As `World`, with a remote server in the place of the sink."""

    connections: int = 1
    tls_rule: str = "disabled"
    place: Place = field(kw_only=True)

    async def __aenter__(self) -> RemoteWorld:
        self.sink = SimpleNamespace(port=PORT)  # type: ignore[assignment]
        self.nameserver = ThreadedNameserver(dns_zones(), port=DNS_PORT)
        await asyncio.to_thread(self.nameserver.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            await node.kill()
        await asyncio.to_thread(self.nameserver.__exit__, None, None, None)

    def sender(self) -> Node:
        """The node, signing with two keys; not started."""
        rules = f"""
[[rule]]
name = "everything"
mx = "*"
scope = "path"
connections_max = {self.connections}
tls = "{self.tls_rule}"
"""
        settings = f"""
[tls]
ca_file = "{self.place.directory / "ca.pem"}"
mta_sts = false
[[egress]]
name = "out"
id = 1
helo = "{SENDER_HOST}"
source_ipv4 = "{SENDER_ADDRESS}"
"""
        for signer in (rsa_signer(), ed25519_signer()):
            settings += (
                f'[[dkim]]\ndomain = "{SENDER_DOMAIN}"\nd = "{signer.domain}"\n'
                f'selector = "{signer.selector}"\nkey = "{signer.selector}.pem"\n'
            )
        node = self.node("sender", rules=rules, children=1, settings=settings)
        text = node.config.read_text()
        node.config.write_text(text.replace('["127.0.0.0/8"]', '["192.0.2.0/24"]'))
        for signer, pem in ((rsa_signer(), rsa_pem()), (ed25519_signer(), ed25519_pem())):
            path = node.directory / f"{signer.selector}.pem"
            path.write_bytes(pem)
            path.chmod(0o600)
        return node

    async def send(self) -> Sent:
        """Starts the delivery to all `recipients`."""
        async with self.database.pool.acquire() as conn:
            delivery_id = await deliveries.create(conn, NewDelivery(name="interop", content=content()))
            rows = [(f"{name}@{DOMAIN}", None, values) for name, values in recipients()]
            [appended] = await append_parts(conn, delivery_id, [Part("all", FIELDS, rows)])
            await deliveries.seal(conn, delivery_id)
            await deliveries.start(conn, delivery_id)
            renderer = compile_content(
                load_content(content(), "content"),
                delivery_id=delivery_id,
                verp_key=await verp_key(conn),
                signers=(rsa_signer(), ed25519_signer()),
            ).bind(FIELDS)
        return Sent(delivery_id, appended.append_id << 16, renderer)

    async def outcomes(self, sent: Sent, wait_s: float) -> list[asyncpg.Record]:
        """Lines of the log, when each recipient has one or ``wait_s`` are over."""
        end = time.monotonic() + wait_s
        while True:
            async with self.database.pool.acquire() as conn:
                lines = await conn.fetch("SELECT * FROM mta.delivery_log WHERE delivery_id = $1 ORDER BY at", sent.id)
            if len({line["address"] for line in lines}) == len(recipients()) or time.monotonic() > end:
                return list(lines)
            await asyncio.sleep(0.1)


@dataclass(frozen=True)
class Sent:
    """A delivery, and what makes its messages again."""

    id: int
    first_number: int
    renderer: Renderer

    def message(self, name: str, date_unix_s: int) -> bytes:
        """What the product sent to a recipient, without dot stuffing; equal arguments give equal octets."""
        [(at, values)] = [(at, values) for at, (one, values) in enumerate(recipients()) if one == name]
        rendered = self.renderer.render(f"{name}@{DOMAIN}", None, values, self.first_number + at, date_unix_s)
        return b"".join(rendered.segments)
