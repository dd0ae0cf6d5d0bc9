"""How nodes share a limit: each holds a part of it, and only what is unused moves.

A node's windows let through at most its share (`mta.traffic.quota`). It lowers its share, never below what it holds
there (used inside the window, or in flight), and only then tells of it; what it gave up may go to another.

Why no window over all nodes ever holds more than the limit. Look at a window that ends at time e. Every node's part of
it is at most the share that the node had at e: its own window of the same length, ending at the last message before
e, held no more than its share then, and a share is never lowered below what its window holds. The shares of all nodes
add up to at most the limit at every moment, as one gives before another takes. So the parts add up to at most that.
This needs no clock that two nodes agree on: each measures windows by its own, and a share moves by a transaction.
Connections are a window of no length: what is held is what is open.

A node that is alone keeps to no shares. So whoever comes gets nothing until all who live have said that they do;
likewise with a limit that is counted on one egress, where nodes have different ones (`is_open`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

TURN_S: Final = 10.0  # where there is too little for everybody, the odd ones go round in so long
# After a run's lease is over its children begin nothing; so long they may need for what was under way.
DEAD_MARGIN_S: Final = 30.0


LimitKind = tuple[str, str]  # key of the limit (`mta.traffic.rules.limit_key`), kind as in `span_s`


class Peer(NamedTuple):
    """Another node whose shares count. ``bound_ids``: the egresses of which it keeps to shares; None: it keeps to none.
    ``is_living``: its lease holds."""

    name: str
    egress_ids: frozenset[int]
    bound_ids: frozenset[int] | None
    is_living: bool = True


class Standing(NamedTuple):
    """What a node has of a limit, as it told last. ``is_living``: its lease holds; else it takes no more. ``least``: of
    less than so much it can make no use (a message's bytes)."""

    node: str
    share: int
    most: int
    wanted: int
    is_living: bool = True
    least: int = 1


class Granted(NamedTuple):
    """``share``: what the node has now; ``target``: what it should go down to, where others want more than they
    have."""

    share: int
    target: int


def grant(me: Standing, others: Sequence[Standing], turn: int) -> Granted:
    """What a node gets that tells it keeps ``me.share`` and wants ``me.wanted``, with what it keeps.

    ``others``: every other node with a share that counts, and every living one that wants some. Never takes from
    another: what is free is the limit less all shares. The limit is the smallest that a living node goes by, as
    nodes may hear of new rules one after the other.
    """
    living = [other for other in others if other.is_living]
    limit = min([me.most, *(other.most for other in living)])
    bound = sum(other.share for other in others if not other.is_living)
    hungry = [one for one in (me, *living) if one.wanted > 0]
    least = max((one.least for one in hungry), default=1)
    fair = fair_parts(max(0, limit - bound), {one.node: one.wanted for one in hungry}, turn, least).get(me.node, 0)
    free = max(0, limit - me.share - sum(other.share for other in others))
    share = me.share + min(free, max(0, fair - me.share))
    return Granted(share, min(share, max(fair, 0)))


def is_open(key: str, peers: Iterable[Peer]) -> bool:
    """True when all living nodes that use a limit keep to their shares of it. Until then nobody gets more."""
    return not any(
        peer.is_living
        and is_counted_on(key, peer.egress_ids)
        and (peer.bound_ids is None or not is_counted_on(key, peer.bound_ids))
        for peer in peers
    )


def is_counted_on(key: str, egress_ids: Collection[int]) -> bool:
    """True for a limit of one of these egresses, and for one that all egresses share."""
    fields = key.split("|")
    return len(fields) == 1 or int(fields[1]) in egress_ids


def common_of(egress_ids: Iterable[int], peers: Iterable[Peer]) -> frozenset[int]:
    """Of a node's egresses those that others use too."""
    return frozenset(egress_ids) & frozenset[int]().union(*(peer.egress_ids for peer in peers))


def fair_parts(amount: int, wanted: Mapping[str, int], turn: int, least: int = 1) -> dict[str, int]:
    """Max-min fair: nobody gets more than they want, and nobody less than another who gets more than an equal part.

    What is left over in whole numbers goes to one node after the other, beginning elsewhere each ``turn``. So does all,
    where equal parts are smaller than ``least``: to as many at a time as can make use of it.
    """
    parts = dict.fromkeys(wanted, 0)
    hungry = sorted(node for node, want in wanted.items() if want > 0)
    if amount < least * len(hungry):
        hungry = _in_turn(hungry, turn)[: max(1, amount // least)]
    while hungry and amount >= len(hungry):
        each = amount // len(hungry)
        given = min([each, *(wanted[node] - parts[node] for node in hungry)])
        for node in hungry:
            parts[node] += given
        amount -= given * len(hungry)
        hungry = [node for node in hungry if parts[node] < wanted[node]]
    for node in _in_turn(hungry, turn)[:amount]:
        parts[node] += 1
    return parts


def _in_turn(nodes: list[str], turn: int) -> list[str]:
    first = turn % max(1, len(nodes))
    return nodes[first:] + nodes[:first]


def span_s(kind: str) -> int:
    """How long what was used under a kind ("c", "p", "m60", "b3600", "o1") still counts, in seconds."""
    return 0 if kind in ("c", "p") else int(kind[1:])
