"""Sessions and what was learnt of their hosts: what a new one keeps to, and what one more than a host takes tells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mta.traffic.counters import Counters
from mta.traffic.host_facts import Learnt, overridden
from mta.traffic.sessions import Hop, Session, count_hop

LINGERS_S: Final = 1.0


def obey_facts(session: Session, counters: Counters, now_s: float) -> None:
    """Before a session is ordered: it keeps to what is known of its host, or tries without what is due for that."""
    hop = session.hop
    without = overridden(hop.rule, counters.rules.origins)
    obeyed, is_trial = counters.hosts.begin_session(hop.host, session.id, without, counters.unix_s(now_s))
    session.obey(obeyed)
    session.is_host_trial = is_trial


def end_trial(session: Session, counters: Counters, now_s: float) -> list[Learnt]:
    """The end of a session that tried without what was due: the facts that it has shown to be gone."""
    unix_s = counters.unix_s(now_s)
    return counters.hosts.end_trial(session.hop.host, session.id, session.progress, unix_s)


def count_again(session: Session, counters: Counters) -> Hop:
    """A session's hop as the rules, and what was learnt of its host, say now."""
    old, group = session.hop, session.group
    return count_hop(
        old.mx_host,
        old.preference,
        old.peer,
        old.authorities,
        group.site.key,
        group.domain_class,
        group.egress,
        counters.rules,
        counters,
    )


def connections_beside(session: Session, sessions: Iterable[Session], now_s: float) -> int:
    """How many connections of its egress its host holds besides this one, which it refused as one too many."""
    session.is_surplus = True
    # The host may not have noticed yet that one has ended.
    held = int(now_s - session.path.ended_s < LINGERS_S)
    for other in sessions:
        if other.is_surplus or other.is_over or not other.is_opened:
            continue
        held += other.hop.host == session.hop.host and other.group.egress is session.group.egress
    return held
