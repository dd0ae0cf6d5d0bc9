"""The sink's name server, asked by dnspython over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver
import pytest

from mta.model.errors import BadInput
from mta.sink.nameserver import Nameserver, Responder, ThreadedNameserver, Zones, read_zones
from mta.sink.zones import Spread

ZONES = {
    "Example.test": {"MX": [(10, "mx1.example.test"), (20, "mx2.example.test.")], "TXT": "v=spf1 -all"},
    "mx1.example.test": {"A": ["127.0.0.2", "127.0.0.3"], "AAAA": ["::1"], "ttl": 7},
    "mx2.example.test": {"A": "127.0.0.4"},
    "alias.test": {"CNAME": "example.test"},
    "loop.test": {"CNAME": "loop.test"},
    "nomail.test": {"MX": [(0, ".")]},
    "*.bulk.test": {"MX": [(5, "mx1.example.test")]},
    "real.bulk.test": {"A": ["127.0.0.5"]},
    "a.deep.name.test": {"A": ["127.0.0.6"]},
    "servfail.test": {"fault": "servfail"},
    "refused.test": {"fault": "refused"},
    "gone.test": {"fault": "nxdomain"},
    "silent.test": {"A": ["127.0.0.7"], "fault": {"MX": "silent"}},
    "truncated.test": {"MX": [(1, "mx1.example.test")], "fault": "truncated"},
    "wrong.test": {"A": ["127.0.0.8"], "fault": "wrong-id"},
    "large.test": {"MX": [(number, f"mx{number}.some-long-host-name.large.test") for number in range(200)]},
}


def resolver_for(server: Nameserver | ThreadedNameserver, lifetime_s: float = 5.0) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = [server.address]
    resolver.port = server.port
    resolver.lifetime = lifetime_s
    return resolver


async def ask(
    server: Nameserver, name: str, kind: str, timeout_s: float = 5.0, *, tcp: bool = False
) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    over = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await over(query, server.address, timeout_s, server.port)


def texts(section: list[dns.rrset.RRset]) -> list[str]:
    return [line for rrset in section for line in rrset.to_text().splitlines()]


async def test_mx_comes_with_the_addresses_of_its_hosts() -> None:
    async with Nameserver(ZONES) as server:
        answer = await ask(server, "eXAMPLE.TesT", "MX")
        hosts = [(rdata.preference, rdata.exchange.to_text().lower()) for rdata in answer.answer[0]]
        assert sorted(hosts) == [(10, "mx1.example.test."), (20, "mx2.example.test.")]
        additional = [line.lower() for line in texts(answer.additional)]
        assert "mx1.example.test. 7 in a 127.0.0.3" in additional
        assert "mx1.example.test. 7 in aaaa ::1" in additional
        assert "mx2.example.test. 300 in a 127.0.0.4" in additional
        assert answer.flags & dns.flags.AA
        assert texts((await ask(server, "example.test", "TXT")).answer) == ['example.test. 300 IN TXT "v=spf1 -all"']


async def test_the_letters_of_a_question_come_back_as_they_were_asked() -> None:
    async with Nameserver(ZONES) as server:
        for name in ("example.test.", "EXAMPLE.test.", "eXaMpLe.TeSt."):
            answer = await ask(server, name, "MX")
            assert answer.question[0].name.to_text() == name
        assert server.queries == {("example.test", "MX"): 3}


async def test_null_mx_alias_and_wildcards() -> None:
    async with Nameserver(ZONES) as server:
        resolver = resolver_for(server)
        assert [rdata.to_text() for rdata in await resolver.resolve("nomail.test", "MX")] == ["0 ."]
        assert (await resolver.resolve("alias.test", "MX")).canonical_name.to_text() == "example.test."
        assert [rdata.preference for rdata in await resolver.resolve("x.y.bulk.test", "MX")] == [5]
        with pytest.raises(dns.resolver.NoAnswer):
            await resolver.resolve("real.bulk.test", "MX")
        with pytest.raises(dns.resolver.NXDOMAIN):
            await resolver.resolve("below.real.bulk.test", "MX")
        assert (await ask(server, "loop.test", "MX")).rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("nothing.test", "MX", dns.rcode.NXDOMAIN),
        ("gone.test", "MX", dns.rcode.NXDOMAIN),
        ("mx1.example.test", "MX", dns.rcode.NOERROR),
        ("deep.name.test", "A", dns.rcode.NOERROR),
        ("bulk.test", "A", dns.rcode.NOERROR),
    ],
)
async def test_what_is_not_there_comes_with_the_time_to_remember_it(
    name: str, kind: str, rcode: dns.rcode.Rcode
) -> None:
    async with Nameserver(ZONES, negative_ttl_s=42) as server:
        answer = await ask(server, name, kind)
        assert (answer.rcode(), answer.answer) == (rcode, [])
        (soa,) = answer.authority
        assert (soa.rdtype, soa.ttl, soa[0].minimum) == (dns.rdatatype.SOA, 42, 42)


async def test_faults_by_name_and_type() -> None:
    async with Nameserver(ZONES) as server:
        assert (await ask(server, "servfail.test", "MX")).rcode() == dns.rcode.SERVFAIL
        assert (await ask(server, "refused.test", "A")).rcode() == dns.rcode.REFUSED
        with pytest.raises(dns.exception.Timeout):
            await ask(server, "silent.test", "MX", 0.1)
        assert texts((await ask(server, "silent.test", "A")).answer) == ["silent.test. 300 IN A 127.0.0.7"]
        query = dns.message.make_query("wrong.test", "A")
        with pytest.raises(dns.query.BadResponse):
            await dns.asyncquery.udp(query, server.address, 5.0, server.port)


async def test_a_truncated_answer_is_whole_over_tcp() -> None:
    async with Nameserver(ZONES) as server:
        for name, hosts in (("truncated.test", 1), ("large.test", 200)):
            short = await ask(server, name, "MX")
            assert short.flags & dns.flags.TC
            assert short.answer == []
            assert len((await ask(server, name, "MX", tcp=True)).answer[0]) == hosts
            assert server.queries[name, "MX"] == 2
            assert len(await resolver_for(server).resolve(name, "MX")) == hosts


async def test_edns_is_answered_in_kind() -> None:
    async with Nameserver(ZONES) as server:
        query = dns.message.make_query("example.test", "MX", use_edns=0, payload=4096)
        answer = await dns.asyncquery.udp(query, server.address, 5.0, server.port)
        assert answer.edns == 0
        assert (await ask(server, "example.test", "MX")).edns == -1


async def test_octets_that_are_no_question_do_no_harm() -> None:
    good = dns.message.make_query("example.test", "MX").to_wire()
    responder = Responder(Zones(ZONES))
    for length in range(len(good)):
        responder.respond(good[:length])
    assert responder.respond(good[:2] + b"\x80" + good[3:]) is None  # an answer, not a question
    assert responder.respond(good[:12] + b"\xc0\x0c\x00\x0f\x00\x01") is None
    broken = responder.respond(good + b"\x00")
    assert broken is not None
    assert dns.message.from_wire(broken).rcode() == dns.rcode.FORMERR
    assert not responder.queries


async def test_several_questions_on_one_tcp_connection() -> None:
    async with Nameserver(ZONES) as server:
        reader, writer = await asyncio.open_connection(server.address, server.port)
        for name in ("example.test", "nomail.test"):
            wire = dns.message.make_query(name, "MX").to_wire()
            writer.write(len(wire).to_bytes(2) + wire)
        for name in ("example.test.", "nomail.test."):
            length = int.from_bytes(await reader.readexactly(2))
            answer = dns.message.from_wire(await reader.readexactly(length))
            assert answer.question[0].name.to_text() == name
        writer.close()


def test_spread_gives_many_domains_to_few_hosts() -> None:
    spread = Spread("bench.test", 100_000, 50, ("127.0.0.2", "127.0.0.3"), first_share=0.5)
    hosts = [spread.host_of(number) for number in range(100_000)]
    assert hosts.count(0) == 50_000
    assert {hosts.count(number) for number in range(1, 50)} <= {1020, 1021}
    even = Spread("bench.test", 100, 4, ("::1",))
    assert [even.host_of(number) for number in range(6)] == [0, 1, 2, 3, 0, 1]
    for name in (
        "d100.bench.test",
        "d01.bench.test",
        "dx.bench.test",
        "mx4.bench.test",
        "d1.other.test",
        "d.bench.test",
    ):
        assert even(name) is None
    assert even("mx3.bench.test") == {"AAAA": ["::1"], "ttl": 300}


def test_threaded_server_stops_and_gives_its_port_back() -> None:
    rule = Spread("bench.test", 10, 2, ("127.0.0.2",))
    with ThreadedNameserver({}, synthetic=(rule,)) as server:
        answer = dns.query.udp(dns.message.make_query("d7.bench.test", "MX"), server.address, 5.0, server.port)
        assert texts(answer.answer) == ["d7.bench.test. 300 IN MX 10 mx1.bench.test."]
        assert texts(answer.additional) == ["mx1.bench.test. 300 IN A 127.0.0.2"]
        port = server.port
        with pytest.raises(BadInput, match="cannot be listened on"):
            ThreadedNameserver({}, port=port).start()
    with ThreadedNameserver({}, port=port) as server:
        assert server.port == port


def test_it_answers_faster_than_a_benchmark_asks() -> None:
    """5,000 answers a second on an idle machine, a fifth of that on a busy one; first and later questions alike."""
    responder = Responder(Zones({}, (Spread("bench.test", 100_000, 50, ("127.0.0.2",)),)))
    questions = [dns.message.make_query(f"d{number}.bench.test", "MX").to_wire() for number in range(500)]
    before = time.process_time()
    for question in questions * 2:
        assert responder.respond(question) is not None
    assert 1000 / (time.process_time() - before) > 1000


def test_zones_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "zones.toml"
    path.write_text(
        """
        [names."example.test"]
        MX = [[10, "mx1.example.test"]]
        [names."mx1.example.test"]
        A = ["127.0.0.2"]
        fault = { AAAA = "servfail" }
        [[spread]]
        suffix = "bench.test"
        domains = 10
        hosts = 2
        addresses = ["127.0.0.2"]
        """
    )
    zones = read_zones(path)
    for name in ("example.test", "d9.bench.test"):
        entry = zones.find(name)
        assert entry is not None
        assert len(entry.rdatas["MX"]) == 1
    assert zones.find("d10.bench.test") is None


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[names."a.test"]\nMX = [[10]]', "names.a.test.MX"),
        ('[names."a.test"]\nA = ["127.0.0"]', "names.a.test.A"),
        ('[names."a.test"]\nMMX = ["x"]', "names.a.test.MMX"),
        ('[names."a.test"]\nttl = -1', "names.a.test.ttl"),
        ('[names."a.test"]\nfault = "slow"', "names.a.test.fault"),
        ('[names."a.test"]\nCNAME = "b.test"\nA = "127.0.0.1"', "names.a.test.CNAME"),
        ('[[spread]]\nsuffix = "a.test"\ndomains = 0\nhosts = 1\naddresses = ["127.0.0.1"]', "spread 1"),
        ("[name]", "zones.toml"),
        ("[names", "zones.toml"),
    ],
)
def test_a_bad_zones_file_names_its_place(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "zones.toml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_zones(path)
    assert str(path) in caught.value.where
    assert caught.value.where.endswith(where)


def test_command_answers_and_says_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "zones.toml"
    path.write_text('[names."a.test"]\nA = ["127.0.0.2"]\n')
    command = [sys.executable, "-m", "mta.cli.sink", "nameserver", str(path), "--listen", "127.0.0.1:0", "--json"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        address, port = json.loads(process.stdout.readline())["listening"].split(":")
        answer = dns.query.udp(dns.message.make_query("a.test", "A"), address, 5.0, int(port))
        assert texts(answer.answer) == ["a.test. 300 IN A 127.0.0.2"]
        process.send_signal(signal.SIGINT)
        assert json.loads(process.stdout.readline()) == {"queries": 1, "most": [["a.test", "A", 1]]}
        assert process.wait(10) == 0
