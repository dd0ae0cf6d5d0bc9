"""How nodes share a limit: each holds a part of it, and only what is unused moves.

A node's windows let through at most its share (`mta.traffic.quota`). It lowers its share, never below what it holds
there (used inside the window, or in flight), and only then tells of it; what it gave up may go to another.

Why no window over all nodes ever holds more than the limit. Look at a window that ends at time e. Every node's part of
it is at most the share that the node had at e: its own window of the same length, ending at the last message before
e, held no more than its share then, and a share is never lowered below what its window holds. The shares of all nodes
add up to at most the limit at every moment, as one gives before another takes. So the parts add up to at most that.
This needs no clock that two nodes agree on: each measures windows by its own, and a share moves by a transaction.
Connections are a window of no length: what is held is what is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

TURN_S: Final = 10.0  # where there is too little for everybody, the odd ones go round in so long


class Standing(NamedTuple):
    """What a node has of a limit, as it told last. ``is_living``: its lease holds; else it takes no more."""

    node: str
    share: int
    most: int
    wanted: int
    is_living: bool = True


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
    fair = fair_parts(max(0, limit - bound), {one.node: one.wanted for one in (me, *living)}, turn)[me.node]
    free = max(0, limit - me.share - sum(other.share for other in others))
    share = me.share + min(free, max(0, fair - me.share))
    return Granted(share, min(share, max(fair, 0)))


def fair_parts(amount: int, wanted: dict[str, int], turn: int) -> dict[str, int]:
    """Max-min fair: nobody gets more than they want, and nobody less than another who gets more than an equal part.

    What is left over in whole numbers goes to one node after the other, beginning elsewhere each ``turn``.
    """
    parts = dict.fromkeys(wanted, 0)
    hungry = sorted(node for node, want in wanted.items() if want > 0)
    while hungry and amount >= len(hungry):
        each = amount // len(hungry)
        least = min([each, *(wanted[node] - parts[node] for node in hungry)])
        for node in hungry:
            parts[node] += least
        amount -= least * len(hungry)
        hungry = [node for node in hungry if parts[node] < wanted[node]]
    if hungry:
        first = turn % len(hungry)
        for node in (hungry[first:] + hungry[:first])[:amount]:
            parts[node] += 1
    return parts


def span_s(kind: str) -> int:
    """How long what was used under a kind ("c", "p", "m60", "b3600", "o1") still counts, in seconds."""
    return 0 if kind in ("c", "p") else int(kind[1:])
