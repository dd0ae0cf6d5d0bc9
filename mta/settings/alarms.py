"""``[alarms]`` of the settings: from where on refusals for our own fault raise an alert."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from mta.model.failure import OUR_FAULT
from mta.queue.faults import DEFAULT_CATEGORIES, Bound, FaultBounds
from mta.settings.toml_source import TomlSource, one_of, shown

_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
_Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]


class _BoundTable(msgspec.Struct, frozen=True):
    refusals_min: _Count
    percent_min: _Percent


class AlarmsTable(msgspec.Struct, frozen=True):
    """The keys of ``[alarms]``."""

    refusals_min: _Count = 20
    percent_min: _Percent = 5.0
    categories: dict[str, Any] = {}


def alarm_settings(source: TomlSource, table: AlarmsTable) -> FaultBounds:
    """Raises BadInput with file, line and key."""
    known = {one.label: one for one in sorted(OUR_FAULT)}
    categories = dict(DEFAULT_CATEGORIES)
    for label, given in table.categories.items():
        path = ("alarms", "categories", label)
        if label not in known:
            raise source.fault(path, f"{shown(label)} is no fault of ours; expected {one_of(known)}")
        bound = source.build(path, given, _BoundTable)
        categories[known[label]] = Bound(bound.refusals_min, bound.percent_min)
    return FaultBounds(Bound(table.refusals_min, table.percent_min), categories)
