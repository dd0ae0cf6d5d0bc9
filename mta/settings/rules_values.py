"""Single values of a rules file: masks, ranges, hours, names, retry schedules, patterns."""

from __future__ import annotations

import re
import zoneinfo
from typing import Final

import re2

from mta.model.errors import BadInput
from mta.model.masks import mask_fault
from mta.settings.rules_tables import EGRESS_ID_MAX, LimitsTable, QuietTable
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import TomlSource, one_of, shown
from mta.traffic.limits import LIMIT_KEYS, Limits
from mta.traffic.retry import PRESETS, RetrySchedule
from mta.traffic.rules import QuietHours

MASKS_PER_RULE_MAX: Final = 100
RANGES_PER_RULE_MAX: Final = 100
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RANGE: Final = re.compile(r"\s*([0-9]{1,10})\s*(?:-\s*([0-9]{1,10})\s*)?")
_HOURS: Final = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9])")
_DAY_MINUTES: Final = 1_440


def name_of(source: TomlSource, path: KeyPath, name: str, what: str = "name") -> str:
    """The name, if it is one."""
    if not _NAME.fullmatch(name):
        expected = "1 to 64 letters, digits, '.', '_' or '-'"
        raise source.fault(path, f"{shown(name)} is not allowed; expected {expected}")
    return name


def limits_of(table: LimitsTable) -> Limits:
    """The figures of a table."""
    return Limits(**{key: getattr(table, key) for key in LIMIT_KEYS})


def masks_of(source: TomlSource, path: KeyPath, given: str | list[str], *, is_site: bool = False) -> str:
    """Masks as a rule holds them: with commas between."""
    masks = [given] if isinstance(given, str) else given
    if not masks:
        raise source.fault(path, "at least one mask is needed; '*' fits every host")
    if len(masks) > MASKS_PER_RULE_MAX:
        raise source.fault(path, f"more than {MASKS_PER_RULE_MAX} masks")
    for i, mask in enumerate(masks):
        at = path if isinstance(given, str) else (*path, i)
        if "," in mask:
            raise source.fault(at, f'{shown(mask)}: write several masks as an array, ["*.a.example", "*.b.example"]')
        # The key of a site of several hosts has a plus sign before the number of the others.
        fault = mask_fault(mask.replace("+", "-") if is_site else mask)
        if fault is not None:
            raise source.fault(at, fault)
    return ", ".join(masks)


def ranges_of(source: TomlSource, path: KeyPath, given: list[int | str]) -> tuple[tuple[int, int], ...]:
    """Inclusive ranges of egress ids."""
    if len(given) > RANGES_PER_RULE_MAX:
        raise source.fault(path, f"more than {RANGES_PER_RULE_MAX} ranges")
    ranges = []
    for i, value in enumerate(given):
        at = (*path, i)
        match = _RANGE.fullmatch(str(value))
        if match is None:
            raise source.fault(at, f'{shown(value)} is not allowed; expected an egress id (7) or a range ("1-5")')
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= EGRESS_ID_MAX:
            raise source.fault(at, f"{shown(value)} is not allowed; egress ids go from 1 to {EGRESS_ID_MAX}, upwards")
        ranges.append((first, last))
    return tuple(ranges)


def quiet_of(source: TomlSource, path: KeyPath, table: QuietTable) -> QuietHours:
    """Times of the day, in a zone that this machine knows."""
    spans = []
    for i, given in enumerate(table.hours):
        match = _HOURS.fullmatch(given)
        minutes = [] if match is None else [int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])]
        if not minutes or max(minutes) > _DAY_MINUTES or minutes[0] == minutes[1]:
            raise source.fault(
                (*path, "hours", i), f"{shown(given)} is not allowed; expected times from and to, such as '22:00-07:00'"
            )
        spans.append((minutes[0], minutes[1]))
    if not spans:
        raise source.fault((*path, "hours"), "at least one span is needed, such as '22:00-07:00'")
    try:
        zoneinfo.ZoneInfo(table.time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise source.fault(
            (*path, "time_zone"), f"{shown(table.time_zone)} is no time zone, such as 'Europe/Paris' or 'UTC'"
        ) from None
    return QuietHours(spans=tuple(spans), zone=table.time_zone)


def retry_of(source: TomlSource, path: KeyPath, given: str | RetrySchedule) -> RetrySchedule:
    """A preset by its name, or a schedule."""
    if isinstance(given, RetrySchedule):
        return given
    if given not in PRESETS:
        raise source.fault(path, f"{shown(given)} is not allowed; expected {one_of(PRESETS)}, or a table")
    return PRESETS[given]


def check_pattern(source: TomlSource, path: KeyPath, pattern: str) -> None:
    """Refuses what RE2 does not take: it matches in linear time, so it knows no look-around and no back-references."""
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = False
    options.max_mem = 1 << 20
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise source.fault(
            path, f"{shown(pattern)} is not allowed: {said} (RE2 has no look-around and no back-references)"
        ) from None


__all__ = ["BadInput", "check_pattern", "limits_of", "masks_of", "name_of", "quiet_of", "ranges_of", "retry_of"]
