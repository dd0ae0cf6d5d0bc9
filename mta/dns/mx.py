"""From DNS answers to a route: the whole decision of RFC 5321 §5.1 and RFC 7505, without I/O.

Two steps, because the addresses are asked for in between:

1. `plan` looks at the MX answer: which hosts, or why none (no such domain, null MX, a loop, not known now);
2. `decide` looks at the hosts' addresses: the site, or why nobody there can be dialled.

What is final and what is not:

| the domain's answers say | route |
|---|---|
| no such name; a name without MX and without addresses | final 5.1.2 |
| null MX | final 5.1.10 |
| alias loop; ourselves as the best MX; aliases without end | final 5.4.6 |
| MX hosts, of which none exists or has an address | final 5.4.4 |
| MX hosts with refused addresses only | final 5.4.4, with the address |
| anything unknown (SERVFAIL, time-out, REFUSED), and no usable host beside it | not final, 4.4.3 |
| TLSA records that are not known now, of all hosts that are left (DANE) | not final, 4.4.3 |

An MX set of which nothing can be used is an error, and the domain's own address no way out (RFC 5321 §5.1: "MUST be
reported as an error"); it is final because each part of it is a definite answer, as final as NXDOMAIN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from mta.dns.answer import Answer, Found
from mta.dns.networks import AddressPolicy
from mta.model.site import DANE_SUFFIX, MxHost, NoRoute, Route, Site, site_key
from mta.model.tls import Authorities

_TEXT_HOSTS_MAX = 3  # how many hosts a sentence names


class Policy(msgspec.Struct, frozen=True):
    """The operator's part in the decision. ``own_names`` in canonical form.

    ``is_dane``: the nameservers validate, and what they call secure is (RFC 7672 §2.1.1).
    """

    addresses: AddressPolicy
    own_names: frozenset[str] = frozenset()
    hosts_max: int = 16
    addresses_per_host_max: int = 8
    is_dane: bool = False


class Plan(msgspec.Struct, frozen=True):
    """Hosts to look up, as (preference, name), best first, and the key of the set that they come from.

    ``is_secure``: nobody can have changed the set on its way, so TLSA records of its hosts count (RFC 7672 §2.2.1).
    """

    key: str
    hosts: tuple[tuple[int, str], ...]
    is_implicit: bool = False
    is_secure: bool = False


class HostAddresses(msgspec.Struct, frozen=True, gc=False):
    """What the A and AAAA answers of one host come to.

    ``usable`` may be dialled, IPv4 first. ``is_own``: one of its addresses is ours. ``is_known``: nothing
    about this host was temporary. ``text`` says why nothing is usable. ``alias_of``: the name at the end of its
    aliases, if it has any. ``is_secure``: its addresses were validated.
    """

    usable: tuple[str, ...] = ()
    is_own: bool = False
    is_known: bool = True
    found: Found = Found.RECORDS
    text: str = ""
    alias_of: str = ""
    is_secure: bool = False
    is_of_machine: bool = False  # nothing is known of it, as no name server could be asked


class HostAuthorities(msgspec.Struct, frozen=True, gc=False):
    """TLSA records of a host, as far as they were validated. ``fault``: why it must not be used now."""

    records: Authorities = ()
    fault: str = ""


def plan(domain: str, mx: Answer, policy: Policy) -> Plan | NoRoute:
    """The hosts that ``mx`` names for ``domain``, those dropped that lead to ourselves, or why there are none."""
    if mx.found is Found.NO_NAME:
        return NoRoute(is_final=True, enhanced="5.1.2", text=f"{domain}: {_no_such_name(domain, mx.name)}")
    if mx.found is Found.LOOP:
        return NoRoute(is_final=True, enhanced="5.4.6", text=f"{domain}: {mx.text}")
    if mx.found is Found.TEMPORARY:
        text = f"{domain}: MX not known now: {mx.text}"
        return NoRoute(is_final=False, enhanced="4.4.3", text=text, is_of_machine=mx.is_of_machine)
    is_secure = policy.is_dane and mx.is_secure
    if mx.found is Found.NO_RECORDS:
        # RFC 5321 §5.1: the alias is replaced by its target before the implicit MX is made.
        implicit = Plan(site_key([(0, mx.name)]), ((0, mx.name),), is_implicit=True, is_secure=is_secure)
        return _without_own(domain, implicit, policy)
    best = _best_by_name(mx.hosts)
    if not best:
        return NoRoute(is_final=True, enhanced="5.1.10", text=f"{domain} accepts no mail (null MX)")
    hosts = tuple(sorted((preference, name) for name, preference in best.items()))
    return _without_own(domain, Plan(site_key(hosts), hosts, is_secure=is_secure), policy)


def _best_by_name(hosts: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Each name's best preference. A null MX beside other records is the zone's error (RFC 7505 §3): passed over."""
    best: dict[str, int] = {}
    for preference, name in hosts:
        if name != "." and preference < best.get(name, 0x10000):
            best[name] = preference
    return best


def _without_own(domain: str, planned: Plan, policy: Policy) -> Plan | NoRoute:
    limit = min((preference for preference, name in planned.hosts if name in policy.own_names), default=0x10000)
    hosts = tuple(host for host in planned.hosts if host[0] < limit)
    if not hosts:
        return _loop(domain)
    return msgspec.structs.replace(planned, hosts=hosts[: policy.hosts_max])


def _loop(domain: str) -> NoRoute:
    return NoRoute(is_final=True, enhanced="5.4.6", text=f"{domain}: the best MX host is this system itself")


def _no_such_name(domain: str, name: str) -> str:
    return "no such domain" if name == domain else f"an alias of {name}, which does not exist"


def host_addresses(name: str, answers: Sequence[Answer], policy: Policy) -> HostAddresses:
    """Joins the answers to one host's A and AAAA questions, refused addresses dropped."""
    if not answers:
        return HostAddresses(found=Found.NO_NAME, text=f"{name} is not a host name")
    usable: list[str] = []
    refused = ""
    is_own = False
    for answer in answers:
        for address in answer.addresses:
            is_ours, why = policy.addresses.judge(address)
            is_own = is_own or is_ours
            if why:
                refused = refused or f"{name} has the refused address {address} ({why})"
            else:
                usable.append(address)
    is_known = all(answer.found is not Found.TEMPORARY for answer in answers)
    kept = _cap(usable, policy.addresses_per_host_max)
    if usable or refused:
        # One owner's address families lie in one zone: what holds for one answer would hold for the other.
        is_secure = policy.is_dane and any(answer.is_secure and answer.addresses for answer in answers)
        alias_of = next((answer.name for answer in answers if answer.aliases and answer.addresses), "")
        text = "" if usable else refused
        return HostAddresses(kept, is_own, is_known, Found.RECORDS, text, alias_of, is_secure)
    return _without_addresses(name, answers, is_known=is_known)


def _cap(addresses: Iterable[str], size: int) -> tuple[str, ...]:
    """Sorted, so that a server that rotates its answers does not look like a change; each family keeps a fair part."""
    ipv4 = sorted({address for address in addresses if ":" not in address})
    ipv6 = sorted({address for address in addresses if ":" in address})
    ipv4 = ipv4[: max(size - len(ipv6), (size + 1) // 2)]
    return (*ipv4, *ipv6[: size - len(ipv4)])


def _without_addresses(name: str, answers: Sequence[Answer], *, is_known: bool) -> HostAddresses:
    if not is_known:
        unknown = [answer for answer in answers if answer.found is Found.TEMPORARY]
        return HostAddresses(
            is_known=False,
            found=Found.TEMPORARY,
            text=f"address of {name} not known now: {unknown[0].text}",
            is_of_machine=all(answer.is_of_machine for answer in unknown),
        )
    if any(answer.found is Found.LOOP for answer in answers):
        return HostAddresses(found=Found.LOOP, text=f"aliases of {name} never end")
    # RFC 8020 §2: one NXDOMAIN holds for every type; some servers say it for one type only, which is as good.
    if any(answer.found is Found.NO_NAME for answer in answers):
        return HostAddresses(found=Found.NO_NAME, text=f"{name} does not exist")
    return HostAddresses(found=Found.NO_RECORDS, text=f"{name} has no address")


def decide(
    planned: Plan,
    addresses: Sequence[HostAddresses],
    policy: Policy,
    authorities: Sequence[HostAuthorities] = (),
) -> Route:
    """The route over ``planned.hosts``, whose addresses stand at the same places in ``addresses``.

    So do ``authorities``, where the plan is secure. A site whose hosts have some is another than that of the domains
    whose MX records anybody may have changed.
    """
    found = authorities or [_NO_AUTHORITIES] * len(addresses)
    triples = list(zip(planned.hosts, addresses, found, strict=True))
    limit = min((preference for (preference, _), at, _ in triples if at.is_own), default=0x10000)
    triples = [triple for triple in triples if triple[0][0] < limit]
    if not triples:
        return _loop(planned.hosts[0][1])
    hosts = tuple(
        MxHost(name, preference, at.usable, tlsa.records)
        for (preference, name), at, tlsa in triples
        if at.usable and not tlsa.fault
    )
    if hosts:
        is_dane = any(tlsa.records or tlsa.fault for _, _, tlsa in triples)
        return Site(planned.key + DANE_SUFFIX if is_dane else planned.key, hosts)
    faults = [tlsa.fault for _, at, tlsa in triples if at.usable]
    if faults:
        return NoRoute(is_final=False, enhanced="4.4.3", text=_sentence(faults))
    return _unreachable(planned, [at for _, at, _ in triples])


_NO_AUTHORITIES = HostAuthorities()


def _unreachable(planned: Plan, addresses: Sequence[HostAddresses]) -> NoRoute:
    unknown = [at for at in addresses if not at.is_known]
    if unknown:
        is_of_machine = all(at.is_of_machine for at in unknown)
        text = _sentence([at.text for at in unknown])
        return NoRoute(is_final=False, enhanced="4.4.3", text=text, is_of_machine=is_of_machine)
    # A refused address explains more than a missing one.
    explaining_first = sorted(addresses, key=lambda at: at.found is not Found.RECORDS)
    text = _sentence([at.text for at in explaining_first])
    return NoRoute(is_final=True, enhanced="5.4.4", text=f"no usable MX host: {text}")


def without_mx_and_address(domain: str, at: HostAddresses) -> NoRoute | None:
    """Why ``domain``, which has no MX, has no implicit one either; None if its own addresses decide like any host's.

    Told apart from an MX set of which nothing can be used: here the domain itself takes no part in mail.
    """
    if at.found is Found.LOOP:
        return NoRoute(is_final=True, enhanced="5.4.6", text=f"{domain} has no MX, and {at.text}")
    if at.found in (Found.NO_NAME, Found.NO_RECORDS):
        return NoRoute(is_final=True, enhanced="5.1.2", text=f"{domain} has no MX, and {at.text}")
    return None


def _sentence(texts: Sequence[str]) -> str:
    more = len(texts) - _TEXT_HOSTS_MAX
    return "; ".join(texts[:_TEXT_HOSTS_MAX]) + (f"; and {more} more" if more > 0 else "")


def host_authorities(name: str, answer: Answer) -> HostAuthorities:
    """What the answer to a TLSA question comes to.

    Records that were not validated are none; a failure is not: somebody may have made it (RFC 7672 §2.1.1, §2.2).
    """
    if answer.found in (Found.TEMPORARY, Found.LOOP):
        return HostAuthorities(fault=f"TLSA records of {name} not known now: {answer.text}")
    return HostAuthorities(answer.authorities if answer.is_secure else ())


def literal_route(domain: str, address: str, policy: Policy) -> Route:
    """The site of a domain literal: one host, named as the literal, with that address."""
    is_own, why = policy.addresses.judge(address)
    if is_own:
        return _loop(domain)
    if why:
        return NoRoute(is_final=True, enhanced="5.4.4", text=f"{domain} is a refused address ({why})")
    name = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
    return Site(name, (MxHost(name, 0, (address,)),))
