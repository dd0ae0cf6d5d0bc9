"""The whole decision from DNS answers to a route, as a table (RFC 5321 §5.1, RFC 7505; threats D1 to D4, D7)."""

from __future__ import annotations

import pytest

from mta.dns.answer import Answer, Found
from mta.dns.mx import HostAddresses, Plan, Policy, decide, host_addresses, literal_route, plan, without_mx_and_address
from mta.dns.networks import AddressPolicy
from mta.model.errors import BadInput
from mta.model.site import MxHost, NoRoute, Route, Site

POLICY = Policy(
    addresses=AddressPolicy(own_addresses=("203.0.113.25", "2001:db8::25")),
    own_names=frozenset({"out.sender.example", "alias.sender.example"}),
)
DOMAIN = "shop.example"

NO_NAME = Answer(Found.NO_NAME, "x")
NO_RECORDS = Answer(Found.NO_RECORDS, "x")
SILENT = Answer(Found.TEMPORARY, "x", text="no answer from 192.0.2.53:53")


def mx_answer(*hosts: tuple[int, str], name: str = DOMAIN) -> Answer:
    return Answer(Found.RECORDS, name, 300, hosts=hosts)


def at(*addresses: str) -> list[Answer]:
    ipv4 = tuple(address for address in addresses if ":" not in address)
    ipv6 = tuple(address for address in addresses if ":" in address)
    return [
        Answer(Found.RECORDS, "x", 300, addresses=ipv4) if ipv4 else NO_RECORDS,
        Answer(Found.RECORDS, "x", 300, addresses=ipv6) if ipv6 else NO_RECORDS,
    ]


def route(mx: Answer, hosts: dict[str, list[Answer]], policy: Policy = POLICY) -> Route:
    """As the resolver does it, with ``hosts`` in place of the network."""
    planned = plan(DOMAIN, mx, policy)
    if isinstance(planned, NoRoute):
        return planned
    found = [host_addresses(name, hosts[name], policy) for _, name in planned.hosts]
    if planned.is_implicit:
        refusal = without_mx_and_address(DOMAIN, found[0])
        if refusal is not None:
            return refusal
    return decide(planned, found, policy)


ROUTED: dict[str, tuple[Answer, dict[str, list[Answer]], tuple[MxHost, ...]]] = {
    "sorted by preference, then by name": (
        mx_answer((20, "c.example"), (10, "b.example"), (10, "a.example")),
        {"a.example": at("192.0.2.1"), "b.example": at("192.0.2.2"), "c.example": at("192.0.2.3")},
        (
            MxHost("a.example", 10, ("192.0.2.1",)),
            MxHost("b.example", 10, ("192.0.2.2",)),
            MxHost("c.example", 20, ("192.0.2.3",)),
        ),
    ),
    "no MX: the domain is its own host": (
        Answer(Found.NO_RECORDS, DOMAIN),
        {DOMAIN: at("192.0.2.1")},
        (MxHost(DOMAIN, 0, ("192.0.2.1",)),),
    ),
    "no MX, only AAAA": (
        Answer(Found.NO_RECORDS, DOMAIN),
        {DOMAIN: at("2001:db8::1")},
        (MxHost(DOMAIN, 0, ("2001:db8::1",)),),
    ),
    "no MX, an alias: its target is the host": (
        Answer(Found.NO_RECORDS, "real.example", aliases=1),
        {"real.example": at("192.0.2.1")},
        (MxHost("real.example", 0, ("192.0.2.1",)),),
    ),
    "a null MX beside another record does not count": (
        mx_answer((0, "."), (10, "a.example")),
        {"a.example": at("192.0.2.1")},
        (MxHost("a.example", 10, ("192.0.2.1",)),),
    ),
    "one name twice counts once, at its best": (
        mx_answer((20, "a.example"), (10, "a.example")),
        {"a.example": at("192.0.2.1")},
        (MxHost("a.example", 10, ("192.0.2.1",)),),
    ),
    "a silent host among others is passed over": (
        mx_answer((10, "a.example"), (20, "b.example")),
        {"a.example": [SILENT, SILENT], "b.example": at("192.0.2.2")},
        (MxHost("b.example", 20, ("192.0.2.2",)),),
    ),
    "one family silent, the other enough": (
        mx_answer((10, "a.example")),
        {"a.example": [at("192.0.2.1")[0], SILENT]},
        (MxHost("a.example", 10, ("192.0.2.1",)),),
    ),
    "a dangling host among others is passed over": (
        mx_answer((10, "a.example"), (20, "b.example")),
        {"a.example": [NO_NAME, NO_NAME], "b.example": at("192.0.2.2")},
        (MxHost("b.example", 20, ("192.0.2.2",)),),
    ),
    "a refused address beside a good one is dropped": (
        mx_answer((10, "a.example")),
        {"a.example": at("127.0.0.1", "192.0.2.1")},
        (MxHost("a.example", 10, ("192.0.2.1",)),),
    ),
    "ourselves as backup: we and all that are no better are dropped": (
        mx_answer((10, "a.example"), (20, "out.sender.example"), (20, "b.example"), (30, "c.example")),
        {"a.example": at("192.0.2.1")},
        (MxHost("a.example", 10, ("192.0.2.1",)),),
    ),
    "our address under a strange name: the same": (
        mx_answer((10, "a.example"), (20, "b.example"), (30, "c.example")),
        {"a.example": at("192.0.2.1"), "b.example": at("203.0.113.25"), "c.example": at("192.0.2.3")},
        (MxHost("a.example", 10, ("192.0.2.1",)),),
    ),
}


@pytest.mark.parametrize("situation", ROUTED)
def test_hosts_of_a_routable_domain(situation: str) -> None:
    mx, hosts, expected = ROUTED[situation]
    found = route(mx, hosts)
    assert isinstance(found, Site)
    assert expected == found.hosts


UNROUTED: dict[str, tuple[Answer, dict[str, list[Answer]], bool, str, str]] = {
    "null MX": (mx_answer((0, ".")), {}, True, "5.1.10", "null MX"),
    "null MX at another preference": (mx_answer((10, ".")), {}, True, "5.1.10", "null MX"),
    "no such domain": (Answer(Found.NO_NAME, DOMAIN), {}, True, "5.1.2", "no such domain"),
    "dangling alias": (Answer(Found.NO_NAME, "gone.example", aliases=1), {}, True, "5.1.2", "gone.example"),
    "neither MX nor address": (
        Answer(Found.NO_RECORDS, DOMAIN), {DOMAIN: [NO_RECORDS, NO_RECORDS]}, True, "5.1.2", "has no address",
    ),
    "alias loop": (Answer(Found.LOOP, DOMAIN, text="aliases never end"), {}, True, "5.4.6", "never end"),
    "MX silent": (Answer(Found.TEMPORARY, DOMAIN, text="SERVFAIL from x"), {}, False, "4.4.3", "SERVFAIL"),
    "implicit MX silent": (
        Answer(Found.NO_RECORDS, DOMAIN), {DOMAIN: [SILENT, NO_RECORDS]}, False, "4.4.3", "192.0.2.53",
    ),
    "all hosts gone": (
        mx_answer((10, "a.example"), (20, "b.example")),
        {"a.example": [NO_NAME, NO_NAME], "b.example": [NO_RECORDS, NO_RECORDS]},
        True, "5.4.4", "a.example does not exist; b.example has no address",
    ),
    "one host gone, one silent": (
        mx_answer((10, "a.example"), (20, "b.example")),
        {"a.example": [NO_NAME, NO_NAME], "b.example": [SILENT, SILENT]},
        False, "4.4.3", "b.example",
    ),
    "one host refused, one silent": (
        mx_answer((10, "a.example"), (20, "b.example")),
        {"a.example": at("127.0.0.1"), "b.example": [SILENT, NO_RECORDS]},
        False, "4.4.3", "b.example",
    ),
    "a host whose aliases never end": (
        mx_answer((10, "a.example")), {"a.example": [Answer(Found.LOOP, "x"), NO_RECORDS]}, True, "5.4.4", "never end",
    ),
    "only refused addresses": (
        mx_answer((10, "a.example"), (20, "b.example")),
        {"a.example": [NO_NAME, NO_NAME], "b.example": at("169.254.169.254")},
        True, "5.4.4", "no usable MX host: b.example has the refused address 169.254.169.254 (link-local)",
    ),
    "ourselves as the best": (
        mx_answer((10, "out.sender.example"), (20, "b.example")), {}, True, "5.4.6", "this system itself",
    ),
    "ourselves among the best": (
        mx_answer((10, "a.example"), (10, "alias.sender.example")), {}, True, "5.4.6", "this system itself",
    ),
    "our address as the best": (
        mx_answer((10, "a.example"), (20, "b.example")),
        {"a.example": at("2001:db8::25"), "b.example": at("192.0.2.1")},
        True, "5.4.6", "this system itself",
    ),
    "our own domain without MX": (
        Answer(Found.NO_RECORDS, "out.sender.example", aliases=1), {}, True, "5.4.6", "this system itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("situation", UNROUTED)
def test_why_a_domain_has_no_route(situation: str) -> None:
    mx, hosts, is_final, enhanced, text = UNROUTED[situation]
    found = route(mx, hosts)
    assert isinstance(found, NoRoute)
    assert (is_final, enhanced) == (found.is_final, found.enhanced)
    assert text in found.text
    assert ("4" if not is_final else "5") == found.enhanced[0]


REFUSED = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "172.16.0.1", "172.31.255.255",
    "192.168.1.1", "169.254.169.254", "224.0.0.1", "239.1.2.3", "255.255.255.255",
    "::", "::1", "fc00::1", "fd12::1", "fe80::1", "ff02::1", "fec0::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a00:1",
    "64:ff9b::169.254.169.254", "2002:7f00:1::", "2002:c0a8:101::1", "::ffff:0:10.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED)
def test_an_inner_address_is_refused_and_named(address: str) -> None:
    found = host_addresses("mx.example", at(address), POLICY)
    assert found.usable == ()
    assert address in found.text


@pytest.mark.parametrize(
    "address", ["192.0.2.1", "8.8.8.8", "172.32.0.1", "11.0.0.1", "2001:db8::1", "2a00:1450::1", "64:ff9b::808:808"]
)
def test_an_outer_address_is_usable(address: str) -> None:
    assert host_addresses("mx.example", at(address), POLICY).usable == (address,)


def test_the_operator_can_allow_a_network_and_only_that() -> None:
    policy = Policy(addresses=AddressPolicy(allow_networks=("127.0.0.0/8", "::1/128")))
    found = host_addresses("mx.example", at("127.0.0.1", "10.0.0.1", "::1", "::ffff:127.0.0.2"), policy)
    assert found.usable == ("127.0.0.1", "::1", "::ffff:127.0.0.2")


def test_our_own_address_counts_inside_another_too() -> None:
    assert host_addresses("mx.example", at("::ffff:203.0.113.25"), POLICY).is_own


def test_a_large_set_is_cut_to_its_best_and_keeps_its_own_key() -> None:
    hosts = tuple((number, f"mx{number:04}.example") for number in range(1000))
    planned = plan(DOMAIN, mx_answer(*hosts), POLICY)
    assert isinstance(planned, Plan)
    assert hosts[:16] == planned.hosts
    other = plan(DOMAIN, mx_answer(*hosts[:-1]), POLICY)
    assert isinstance(other, Plan)
    assert other.key != planned.key


def test_many_addresses_are_cut_and_both_families_keep_a_part() -> None:
    addresses = [f"192.0.2.{number}" for number in range(1, 60)] + [f"2001:db8::{number:x}" for number in range(1, 60)]
    found = host_addresses("mx.example", at(*addresses), POLICY)
    assert [":" in address for address in found.usable] == [False] * 4 + [True] * 4


def test_a_rotated_answer_gives_an_equal_host() -> None:
    forward = host_addresses("mx.example", at("192.0.2.1", "192.0.2.2"), POLICY)
    assert forward == host_addresses("mx.example", at("192.0.2.2", "192.0.2.1"), POLICY)


def test_a_name_that_no_host_can_have_is_unusable() -> None:
    found = host_addresses("a\\010b.example", (), POLICY)
    assert found == HostAddresses(found=Found.NO_NAME, text="a\\010b.example is not a host name")


@pytest.mark.parametrize(
    ("domain", "address", "key"),
    [("[192.0.2.1]", "192.0.2.1", "[192.0.2.1]"), ("[IPv6:2001:DB8::1]", "2001:db8::1", "[IPv6:2001:db8::1]")],
)
def test_a_literal_is_a_site_of_its_address(domain: str, address: str, key: str) -> None:
    assert literal_route(domain, address, POLICY) == Site(key, (MxHost(key, 0, (address,)),))


@pytest.mark.parametrize(("address", "enhanced"), [("127.0.0.1", "5.4.4"), ("203.0.113.25", "5.4.6")])
def test_a_literal_is_held_against_the_same_rules(address: str, enhanced: str) -> None:
    found = literal_route(f"[{address}]", address, POLICY)
    assert isinstance(found, NoRoute)
    assert (True, enhanced) == (found.is_final, found.enhanced)


@pytest.mark.parametrize("wrong", ["127.0.0.1/8", "localhost", "300.0.0.0/8"])
def test_a_network_that_does_not_parse_is_named(wrong: str) -> None:
    with pytest.raises(BadInput, match=r"dns\.allow_networks.*" + wrong):
        AddressPolicy(allow_networks=(wrong,))
