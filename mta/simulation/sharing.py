"""Shares of limits between the nodes of a modelled world, dealt once a second as the nodes of a database do it.

What a node holds it keeps; what nobody holds goes to those who want it, in proportion. So the shares of a limit are
never more than the limit together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from mta.traffic.limit import Held

Shares = dict[tuple[str, str], int]


class Sharer(Protocol):
    """A node with a part in limits."""

    def wanted(self) -> Sequence[Held]: ...

    def allot(self, shares: Shares, common_egresses: Collection[int]) -> None: ...


def deal(nodes: Sequence[Sharer], common_egresses: Collection[int]) -> None:
    """Gives every node its shares, for the next second."""
    asked: dict[tuple[str, str], list[tuple[int, Held]]] = {}
    for at, node in enumerate(nodes):
        for held in node.wanted():
            asked.setdefault((held.key, held.kind), []).append((at, held))
    shares: list[Shares] = [{} for _ in nodes]
    for of, holders in asked.items():
        for at, share in split(holders):
            shares[at][of] = share
    for node, own in zip(nodes, shares, strict=True):
        node.allot(own, common_egresses)


def split(holders: Sequence[tuple[int, Held]]) -> list[tuple[int, int]]:
    """(node, share) of one limit: what each holds, and of the rest what it wants, or its part of that."""
    most = min(held.most for _, held in holders)
    free = max(0, most - sum(held.held for _, held in holders))
    wants = [max(0, held.wanted - held.held) for _, held in holders]
    asked = sum(wants)
    found = []
    for (at, held), want in zip(holders, wants, strict=True):
        part = want if asked <= free else free * want // asked
        found.append((at, held.held + part))
    # Whole numbers leave some over: one each to who wants more, in turn.
    over = 0 if asked <= free else free - sum(free * want // asked for want in wants)
    for index in sorted(range(len(found)), key=lambda index: -wants[index])[:over]:
        at, share = found[index]
        found[index] = (at, share + 1)
    return found
