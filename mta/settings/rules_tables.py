"""What each table of a rules file may hold: its keys, their types, and the bounds of their values.

The keys are described for operators in ``docs/rules.md``; a test holds one against the other.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Final

import msgspec

from mta.model.timeouts import SessionTimeouts
from mta.traffic.automations import Act
from mta.traffic.effects import Target
from mta.traffic.retry import RetrySchedule
from mta.traffic.rules import NextMx, Scope, Tls

LIMIT_MAX: Final = 1_000_000_000
BYTES_MAX: Final = 1_000_000_000_000_000
BYTES_MIN: Final = 1_000  # less would hold up every message there is
SPAN_S_MAX: Final = 30 * 86_400
EGRESS_ID_MAX: Final = 2**31 - 1
PATTERN_CHARS_MAX: Final = 1_000
TRANSACTION_RECIPIENTS_MAX: Final = 1_000
# 0 would hold mail back for ever without saying so, and is what people write who mean "no limit".
_Limit = Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)]
_Volume = Annotated[int, msgspec.Meta(ge=BYTES_MIN, le=BYTES_MAX)]
_Recipients = Annotated[int, msgspec.Meta(ge=1, le=TRANSACTION_RECIPIENTS_MAX)]
_Seconds = Annotated[int, msgspec.Meta(ge=1, le=SPAN_S_MAX)]


class LimitsTable(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of `mta.traffic.limits.Limits`."""

    connections_max: _Limit | None = None
    connections_per_path_max: _Limit | None = None
    connections_per_second_max: _Limit | None = None
    connections_per_minute_max: _Limit | None = None
    connections_per_hour_max: _Limit | None = None
    ramp_up_s: Annotated[int, msgspec.Meta(ge=1, le=3_600)] | None = None
    messages_per_connection_max: _Limit | None = None
    messages_per_second_max: _Limit | None = None
    messages_per_minute_max: _Limit | None = None
    messages_per_hour_max: _Limit | None = None
    messages_per_day_max: _Limit | None = None
    bytes_per_minute_max: _Volume | None = None
    bytes_per_hour_max: _Volume | None = None
    bytes_per_day_max: _Volume | None = None


class QuietTable(msgspec.Struct, frozen=True, kw_only=True):
    """``quiet_hours``."""

    hours: list[str]
    time_zone: str = "UTC"


class RecoveryTable(msgspec.Struct, frozen=True, kw_only=True):
    """``recovery``."""

    interval_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 60
    step_percent: Annotated[float, msgspec.Meta(ge=1, le=100)] = 10.0


class ValuesTable(LimitsTable, frozen=True, kw_only=True):
    """What a rule may have of its own, of its provider, or of ``[defaults]``."""

    scope: Scope = Scope.EGRESS
    tls: Tls = Tls.OPPORTUNISTIC
    mta_sts: bool = True
    dane: bool = True
    pipelining: bool = True
    chunking: bool = True
    learn_hosts: bool = True
    recipients_per_transaction_max: _Recipients = 1
    timeouts: SessionTimeouts = SessionTimeouts()
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] | None = None
    helo: str = ""
    next_mx: NextMx = NextMx.WHEN_FAILING
    pool: str = ""
    retry: str | RetrySchedule | None = None
    quiet_hours: QuietTable | None = None
    backoff: LimitsTable | None = None
    automations: list[str] = []
    recovery: RecoveryTable = RecoveryTable()


class RuleTable(ValuesTable, frozen=True, kw_only=True):
    """``[[rule]]``."""

    name: str
    mx: str | list[str] = ""
    site: str | list[str] = ""
    domain: str | list[str] = ""
    egress_ids: list[int | str] = []
    provider: str = ""


class TotalTable(LimitsTable, frozen=True, kw_only=True):
    """``total`` of a provider."""

    scope: Scope = Scope.EGRESS


class ProviderTable(ValuesTable, frozen=True, kw_only=True):
    """``[[provider]]``."""

    name: str
    total: TotalTable = TotalTable()


class DefaultsTable(ValuesTable, frozen=True, kw_only=True):
    """``[defaults]``."""


class AutomationTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[[automation]]``."""

    name: str
    codes: list[int | str] = []
    enhanced: list[str] = []
    pattern: Annotated[str, msgspec.Meta(max_length=PATTERN_CHARS_MAX)] = ""
    stages: list[str] = []
    replies: _Limit = 1
    within_s: _Seconds = 3_600
    act: Act
    target: Target | None = None
    for_s: _Seconds = 3_600
    factor: float | None = None
    limits: LimitsTable | None = None
    pool: str = ""
    samples: list[str] = []


class WarmUpTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[[warm_up]]``."""

    name: str
    egress_ids: list[int | str]
    starts: datetime.date
    ladders: dict[str, list[_Limit]]


class ErrorBlockTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[[error_block]]``."""

    domain: str | list[str] = "*"
    messages_min: _Limit = 300
    error_percent: Annotated[float, msgspec.Meta(ge=1, le=100)] = 90.0
    within_s: _Seconds = 3_600
    for_s: _Seconds = 10_800


def keys_of(table: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(table))


VALUE_KEYS: Final = keys_of(ValuesTable)
RULE_KEYS: Final = keys_of(RuleTable)
PROVIDER_KEYS: Final = keys_of(ProviderTable)
AUTOMATION_KEYS: Final = keys_of(AutomationTable)
WARM_UP_KEYS: Final = keys_of(WarmUpTable)
ERROR_BLOCK_KEYS: Final = keys_of(ErrorBlockTable)
TOP_KEYS: Final = ("include", "defaults", "provider", "rule", "automation", "warm_up", "error_block")
