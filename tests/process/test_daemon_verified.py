"""Servers that must prove who they are, at real nodes: by rule, by the policy of a domain, by TLSA records."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mta.sink.nameserver import ThreadedNameserver
from tests.support.authorities import certificate_of, presentation, tlsa
from tests.support.node import GENEROUS_RULES, World, until
from tests.support.outcomes import statuses
from tests.support.policy_server import PolicyServer, policy
from tests.support.postgres import Database

HOST = "sink.test"  # for which the sink has a certificate
RULES = (
    """
[[rule]]
name = "verified"
mx = "verified.test"
tls = "verified"
"""
    + GENEROUS_RULES
)
# An address for each host, so that the record tells its connections apart.
ADDRESSES = {HOST: "127.0.0.2", "other.test": "127.0.0.3", "verified.test": "127.0.0.4"}
DIALLED = {name: {"A": [address]} for name, address in ADDRESSES.items()}


def connections(world: World, host: str) -> list[bool]:
    """Whether each connection to a host that has ended was encrypted."""
    return [bool(one.tls) for one in world.record().connections if one.local == ADDRESSES[host] and not one.is_open]


def refused(world: World, host: str) -> int:
    """Connections on which the host's certificate was not taken, so that it knows of no encryption."""
    return connections(world, host).count(False)


def accepted(world: World) -> dict[str, int]:
    """Messages that each host took."""
    taken = Counter(message.local for message in world.record().accepted)
    return {host: taken[address] for host, address in ADDRESSES.items()}


def sink_certificate(world: World) -> bytes:
    assert world.sink.certificate is not None
    return x509.load_pem_x509_certificate(world.sink.certificate.read_bytes()).public_bytes(Encoding.DER)


async def test_policies_and_rules_keep_mail_from_whoever_is_not_the_host(tmp_path: Path, database: Database) -> None:
    authority = trustme.CA()
    domains = ["good.test", "strict.test", "wrong.test"]
    zones: dict[str, object] = {
        **DIALLED,
        "good.test": {"MX": [(10, HOST)]},
        "strict.test": {"MX": [(5, "other.test"), (10, HOST)]},  # its policy names the second only
        "wrong.test": {"MX": [(10, "other.test")]},  # whose certificate is for another name
        "plain.test": {"MX": [(10, "other.test")]},
    }
    for domain in domains:
        zones[f"mta-sts.{domain}"] = {"A": ["127.0.0.1"]}
        zones[f"_mta-sts.{domain}"] = {"TXT": "v=STSv1; id=1;"}
    replies = {"mta-sts.good.test": policy("*.test"), "mta-sts.wrong.test": policy("other.test")}
    replies["mta-sts.strict.test"] = policy(HOST)
    addresses = list(ADDRESSES.values())
    async with World(tmp_path, database, zones, sink_addresses=addresses, tls=True) as world:
        (tmp_path / "ca.pem").write_bytes(
            authority.cert_pem.bytes()
            + x509.load_der_x509_certificate(sink_certificate(world)).public_bytes(Encoding.PEM)
        )
        async with PolicyServer(authority, domains, replies) as policies:
            settings = f'[tls]\nca_file = "{tmp_path}/ca.pem"\nmta_sts_port = {policies.port}\n'
            node = world.node(rules=RULES, children=1, settings=settings)
            await node.start()
            # Who has no policy gets its mail there. First, since a path that fails is left alone by all.
            plain = await world.deliver([f"u{n}@plain.test" for n in range(3)])
            assert (await world.wait_for(plain)).delivered == 3
            ids = {}
            for domain in (*domains, "verified.test"):
                ids[domain] = await world.deliver([f"u{n}@{domain}" for n in range(3)])
            for domain in ("good.test", "strict.test"):
                assert (await world.wait_for(ids[domain])).delivered == 3
            await until("the wrong host is tried and left", lambda: refused(world, "other.test"))
            await until("the rule's host is tried and left", lambda: refused(world, "verified.test"))
            assert accepted(world) == {HOST: 6, "other.test": 3, "verified.test": 0}
            assert [entry["mode"] for entry in node.said("mta-sts policy")] == ["enforce"] * 3
            assert await node.stop() == 0
        # The policy server is gone, as when somebody wants us to forget: what was learnt holds after a restart.
        before = refused(world, "other.test")
        await node.start()
        assert (await world.wait_for(await world.deliver(["v@good.test"]))).delivered == 1
        await until("the wrong host is tried again", lambda: refused(world, "other.test") > before)
        assert accepted(world) == {HOST: 7, "other.test": 3, "verified.test": 0}
        for domain in ("wrong.test", "verified.test"):
            assert await statuses(world, ids[domain]) == {}
        assert not node.said("mta-sts policy cannot be fetched")
        assert await node.stop() == 0


async def test_hosts_must_fit_their_tlsa_records(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, {}, sink_addresses=list(ADDRESSES.values()), tls=True) as world:
        right = presentation(tlsa(3, 1, 1, sink_certificate(world)))
        wrong = presentation(tlsa(3, 1, 1, certificate_of(trustme.CA())))
        signed = {
            **{name: {**records, "secure": True} for name, records in DIALLED.items()},
            f"_{world.sink.port}._tcp.other.test": {"TLSA": [right], "secure": True},
            f"_{world.sink.port}._tcp.verified.test": {"TLSA": [wrong], "secure": True},
            "right.test": {"MX": [(10, "other.test")], "secure": True},
            "wrong.test": {"MX": [(10, "verified.test")], "secure": True},
            "unsigned.test": {"MX": [(10, "verified.test")]},
        }
        await asyncio.to_thread(world.nameserver.stop)
        world.nameserver = await asyncio.to_thread(ThreadedNameserver(signed).__enter__)
        node = world.node(children=1, settings='[tls]\ndane = "on"\n')
        await node.start()
        # What nobody has signed promises nothing, so nothing is asked of the same host.
        for domain in ("unsigned.test", "right.test"):
            assert (await world.wait_for(await world.deliver([f"u@{domain}"]))).delivered == 1
        wrong_id = await world.deliver(["u@wrong.test"])
        await until("the wrong host is tried and left", lambda: len(connections(world, "verified.test")) > 1)
        assert accepted(world) == {HOST: 0, "other.test": 1, "verified.test": 1}
        assert await statuses(world, wrong_id) == {}
        assert await node.stop() == 0
