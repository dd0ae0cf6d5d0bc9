"""The life of a delivery: one table of states and what operators may do in each. Pure.

``editing`` → ``running`` ⇄ ``paused``, each of them → ``cancelled``; ``running`` → ``finished`` when it is sealed and
every recipient has its outcome. A cancelled delivery's waiting recipients get the outcome CANCELLED from a daemon.
Asking for the state that is already there changes nothing and is no error: an operator's second click does no harm.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mta.model.errors import BadInput


class DeliveryState(enum.StrEnum):
    EDITING = "editing"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FINISHED = "finished"


class Action(enum.StrEnum):
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    FINISH = "finish"  # by a daemon, never by an operator


_S, _A = DeliveryState, Action
TRANSITIONS: Final[Mapping[tuple[DeliveryState, Action], DeliveryState]] = MappingProxyType(
    {
        (_S.EDITING, _A.START): _S.RUNNING,
        (_S.EDITING, _A.CANCEL): _S.CANCELLED,
        (_S.RUNNING, _A.START): _S.RUNNING,
        (_S.RUNNING, _A.RESUME): _S.RUNNING,
        (_S.RUNNING, _A.PAUSE): _S.PAUSED,
        (_S.RUNNING, _A.CANCEL): _S.CANCELLED,
        (_S.RUNNING, _A.FINISH): _S.FINISHED,
        (_S.PAUSED, _A.PAUSE): _S.PAUSED,
        (_S.PAUSED, _A.RESUME): _S.RUNNING,
        (_S.PAUSED, _A.CANCEL): _S.CANCELLED,
        (_S.CANCELLED, _A.CANCEL): _S.CANCELLED,
        (_S.FINISHED, _A.FINISH): _S.FINISHED,
    }
)
APPENDABLE: Final = frozenset({_S.EDITING, _S.RUNNING, _S.PAUSED})


def next_state(delivery_id: int, state: DeliveryState, action: Action) -> DeliveryState:
    """The state after ``action``; BadInput names what is possible instead."""
    after = TRANSITIONS.get((state, action))
    if after is None:
        changing = [a for a in Action if a is not _A.FINISH and TRANSITIONS.get((state, a), state) is not state]
        possible = f"possible now: {', '.join(changing)}" if changing else "nothing can be done with it any more"
        raise BadInput(f"delivery {delivery_id}", f"is {state}, so it cannot {action}; {possible}")
    return after
