"""Automations, warm-up plans and error blocks of a rules file."""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection
from itertools import pairwise
from typing import Final

from mta.settings.rules_tables import AutomationTable, ErrorBlockTable, WarmUpTable
from mta.settings.rules_values import check_pattern, limits_of, masks_of, ranges_of
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import TomlSource, one_of, shown
from mta.smtp.envelope import Stage
from mta.traffic.automations import Act, Automation, ErrorBlock, ReplyMatch
from mta.traffic.effects import Target
from mta.traffic.limits import Limits
from mta.traffic.rules import WarmUp

SAMPLES_MAX: Final = 50
LADDER_DAYS_MAX: Final = 366
STAGES: Final = tuple(stage.name.lower() for stage in Stage)
_CODE: Final = re.compile(r"[2-5][0-9]{0,2}|0")
_ENHANCED: Final = re.compile(r"[245](\.[0-9]{1,3}){0,2}")
# What each may concern; the first is meant where nothing is said.
TARGETS: Final = {
    Act.SUSPEND: (
        Target.RULE,
        Target.PROVIDER,
        Target.PATH,
        Target.EGRESS,
        Target.SITE,
        Target.DOMAIN,
        Target.TENANT,
        Target.DELIVERY,
    ),
    Act.LOWER: (Target.RULE, Target.PROVIDER),
    Act.BACKOFF: (Target.RULE,),
    Act.NO_TLS: (Target.PATH,),
    Act.POOL: (Target.SITE,),
    Act.HOLD: (Target.DELIVERY,),
}


def read_automation(source: TomlSource, path: KeyPath, raw: AutomationTable) -> Automation:
    """Checked as a whole: what its act needs is there, what it does not use is not."""
    codes = []
    for i, given in enumerate(raw.codes):
        if not _CODE.fullmatch(str(given)):
            raise source.fault(
                (*path, "codes", i), f"{shown(given)} is not allowed; expected a code (421), or how codes begin (4)"
            )
        codes.append(str(given))
    for i, enhanced in enumerate(raw.enhanced):
        if not _ENHANCED.fullmatch(enhanced):
            raise source.fault(
                (*path, "enhanced", i),
                f"{shown(enhanced)} is not allowed; expected a code ('4.7.28'), or its beginning",
            )
    for i, stage in enumerate(raw.stages):
        if stage not in STAGES:
            raise source.fault((*path, "stages", i), f"{shown(stage)} is not allowed; expected {one_of(STAGES)}")
    if not (codes or raw.enhanced or raw.pattern):
        raise source.fault(path, "needs codes, enhanced or pattern: else it would act on every refusal")
    if raw.pattern:
        check_pattern(source, (*path, "pattern"), raw.pattern)
    if len(raw.samples) > SAMPLES_MAX:
        raise source.fault((*path, "samples"), f"more than {SAMPLES_MAX}")
    _check_act(source, path, raw)
    return Automation(
        name=raw.name,
        match=ReplyMatch(tuple(codes), tuple(raw.enhanced), raw.pattern, tuple(raw.stages)),
        replies=raw.replies,
        within_s=raw.within_s,
        act=raw.act,
        target=raw.target or TARGETS[raw.act][0],
        for_s=raw.for_s,
        factor=raw.factor,
        limits=Limits() if raw.limits is None else limits_of(raw.limits),
        pool=raw.pool,
        samples=tuple(raw.samples),
        origin=source.where(path),
    )


def _check_act(source: TomlSource, path: KeyPath, raw: AutomationTable) -> None:
    allowed = TARGETS[raw.act]
    if raw.target is not None and raw.target not in allowed:
        raise source.fault(
            (*path, "target"),
            f"{raw.target.value!r} is not allowed with act {raw.act.value!r}; expected {one_of(allowed)}",
        )
    is_lowering = raw.act is Act.LOWER
    if raw.factor is not None and not (is_lowering and 0 < raw.factor < 1):
        what = "is not allowed; expected a number between 0 and 1" if is_lowering else "is only of act 'lower'"
        raise source.fault((*path, "factor"), f"{raw.factor:g} {what}")
    if raw.limits is not None and not is_lowering:
        raise source.fault((*path, "limits"), "are only of act 'lower'")
    if is_lowering and (raw.factor is None) == (raw.limits is None):
        raise source.fault(path, "act 'lower' needs either factor (0.5) or limits ({ connections_max = 1 })")
    if bool(raw.pool) != (raw.act is Act.POOL):
        raise source.fault((*path, "pool"), "is for act 'pool', which needs it")


def read_warm_up(source: TomlSource, path: KeyPath, raw: WarmUpTable, names: Collection[str]) -> WarmUp:
    """``names``: of rules and providers, which ladders may be for."""
    if not raw.egress_ids:
        raise source.fault((*path, "egress_ids"), "at least one is needed")
    if not raw.ladders:
        raise source.fault((*path, "ladders"), "at least one is needed, such as { '*' = [50, 100, 200] }")
    for name, ladder in raw.ladders.items():
        at = (*path, "ladders", name)
        if name != "*" and name not in names:
            raise source.fault(at, f"no rule and no provider is named {shown(name)}")
        if not 1 <= len(ladder) <= LADDER_DAYS_MAX:
            raise source.fault(at, f"expected one figure a day, for 1 to {LADDER_DAYS_MAX} days")
        if any(later < earlier for earlier, later in pairwise(ladder)):
            raise source.fault(at, "goes down: a ladder is climbed")
    midnight = datetime.datetime.combine(raw.starts, datetime.time(), datetime.UTC)
    return WarmUp(
        name=raw.name,
        egress_ids=ranges_of(source, (*path, "egress_ids"), raw.egress_ids),
        starts_unix_s=int(midnight.timestamp()),
        ladders=tuple((name, tuple(ladder)) for name, ladder in raw.ladders.items()),
        origin=source.where(path),
    )


def read_error_block(source: TomlSource, path: KeyPath, raw: ErrorBlockTable) -> ErrorBlock:
    return ErrorBlock(
        domains=masks_of(source, (*path, "domain"), raw.domain),
        messages_min=raw.messages_min,
        error_percent=raw.error_percent,
        within_s=raw.within_s,
        for_s=raw.for_s,
        origin=source.where(path),
    )
