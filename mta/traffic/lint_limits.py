"""Limits that can never be reached, because another one is reached first; and rules under which nothing is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from mta.traffic.automations import Act
from mta.traffic.findings import Check, Finding, Severity
from mta.traffic.limits import DAY_S, HOUR_S, LIMIT_KEYS, MINUTE_S, SLICE_S, SLICES_PER_HOUR, Limits
from mta.traffic.rules import Provider, QuietHours, Rule, RuleSet, Scope

_DAY_MINUTES = 24 * 60
# Keys that bound the same thing over spans of time.
_FAMILIES = {
    "messages": ("messages_per_second_max", "messages_per_minute_max", "messages_per_hour_max", "messages_per_day_max"),
    "bytes": ("bytes_per_minute_max", "bytes_per_hour_max", "bytes_per_day_max"),
    "connections": ("connections_per_second_max", "connections_per_minute_max", "connections_per_hour_max"),
}
_SPANS = {"second": 1, "minute": MINUTE_S, "hour": HOUR_S, "day": DAY_S}


def span_of(key: str) -> int:
    """Seconds of ``..._per_<span>_max``."""
    return _SPANS[key.split("_per_")[1].removesuffix("_max")]


def find_idle_limits(rules: RuleSet) -> Iterator[Finding]:
    """All of this module, rule by rule."""
    starts = _starts(rules)
    for rule in rules.rules:
        yield from _of_rule(rules, rule, starts)
    seen: set[str] = set()
    for rule in rules.rules:
        provider = rule.provider
        if provider is not None and provider.name not in seen:
            seen.add(provider.name)
            origin = _origins(rules, f"provider:{provider.name}", provider.origin)
            for key, why in _outdone(provider):
                what = _unreachable(key, getattr(provider, key), why)
                subject = f"provider {provider.name}"
                yield Finding(Check.LIMIT_UNREACHABLE, Severity.WARNING, origin(key), subject, what)


def _of_rule(rules: RuleSet, rule: Rule, starts: Sequence[tuple[str, int]]) -> Iterator[Finding]:
    subject = f"rule {rule.name}"
    origin = _origins(rules, rule.name, rule.origin)
    outdone = [
        *_outdone(rule),
        *_outdone_by_paths(rule),
        *_outdone_by_session(rule),
        *_outdone_by_connections(rule),
        *_outdone_by_provider(rule),
    ]
    for key, why in dict(reversed(outdone)).items():
        # What is inherited from defaults was not written for this rule: nobody need mend it.
        severity = Severity.WARNING if _is_own(rule, origin(key), starts) else Severity.NOTE
        what = _unreachable(key, getattr(rule, key), why)
        yield Finding(Check.LIMIT_UNREACHABLE, severity, origin(key), subject, what)
    for key, what in _backoff_faults(rule):
        where = rules.origins.get((rule.name, f"backoff.{key}")) or origin("backoff")
        yield Finding(Check.BACKOFF_LOOSER, Severity.WARNING, where, subject, what)
    if rule.backoff is not None and not any(one.act is Act.BACKOFF for one in rule.automations):
        what = f"backoff: no automation of the rule has action {Act.BACKOFF.value!r}, so its twin limits never hold"
        severity = Severity.WARNING if _is_own(rule, origin("backoff"), starts) else Severity.NOTE
        yield Finding(Check.BACKOFF_UNUSED, severity, origin("backoff"), subject, what)
    if rule.quiet_hours is not None and is_always_quiet(rule.quiet_hours):
        what = "quiet_hours cover the whole day: nothing is ever sent; leave some of it free"
        yield Finding(Check.NEVER_SENDS, Severity.ERROR, origin("quiet_hours"), subject, what)


def is_always_quiet(quiet: QuietHours) -> bool:
    """True when no minute of the day is left."""
    covered: set[int] = set()
    for start, end in quiet.spans:
        until = end if end > start else end + _DAY_MINUTES
        covered.update(minute % _DAY_MINUTES for minute in range(start, until))
    return len(covered) == _DAY_MINUTES


def _unreachable(key: str, value: int, why: str) -> str:
    return f"{key} {value:,} can never be reached: {why}; lower it, raise the other, or delete it"


def _outdone(limits: Limits) -> Iterator[tuple[str, str]]:
    """Of the keys of one family: which of them another makes unreachable, and how."""
    for family, keys in _FAMILIES.items():
        for key in keys:
            most = getattr(limits, key)
            if most is None:
                continue
            for other in keys:
                bound = _allowed(limits, other, span_of(key), family) if other != key else None
                if bound is not None and most > bound[0]:
                    yield key, bound[1]
                    break


def _allowed(limits: Limits, key: str, span_s: int, family: str) -> tuple[int, str] | None:
    """The most that the limit ``key`` lets pass in ``span_s``, with how it comes to that."""
    value: int | None = getattr(limits, key)
    if value is None:
        return None
    own_s = span_of(key)
    if own_s <= span_s:
        most = value * (span_s // own_s)
        return most, f"{key} {value:,} allows {most:,} {family} in that time"
    if key == "messages_per_hour_max" and span_s <= SLICE_S:
        most = max(1, value // SLICES_PER_HOUR)
        return most, f"{key} {value:,} allows {most:,} in any five minutes"
    return value, f"{key} allows only {value:,}"


def _outdone_by_paths(rule: Rule) -> Iterator[tuple[str, str]]:
    total, one_path = rule.connections_max, rule.connections_per_path_max
    if total is None or one_path is None or one_path == total:
        return
    if one_path > total:
        yield "connections_per_path_max", f"connections_max allows only {total:,} in all"
    elif rule.scope is Scope.PATH:
        yield "connections_max", f"it is counted by path too, and connections_per_path_max allows only {one_path:,}"


def _outdone_by_session(rule: Rule) -> Iterator[tuple[str, str]]:
    session = rule.messages_per_connection_max
    if session is not None and rule.recipients_per_transaction_max > session:
        yield "recipients_per_transaction_max", f"messages_per_connection_max allows only {session:,}"


def _outdone_by_connections(rule: Rule) -> Iterator[tuple[str, str]]:
    """Messages a connection times connections that may be begun, in an hour or a day of steady sending."""
    each = rule.messages_per_connection_max
    if each is None:
        return
    for key in ("messages_per_hour_max", "messages_per_day_max"):
        most: int | None = getattr(rule, key)
        for opening in _FAMILIES["connections"]:
            begun = _allowed(rule, opening, span_of(key), "connections")
            if most is not None and begun is not None and most > begun[0] * each:
                yield key, f"{begun[0]:,} connections ({opening}) of {each:,} messages each are {begun[0] * each:,}"
                break


def _outdone_by_provider(rule: Rule) -> Iterator[tuple[str, str]]:
    provider = rule.provider
    if provider is None or not _is_counted_within(rule, provider):
        return
    open_, most_open = rule.connections_max, provider.connections_max
    if open_ is not None and most_open is not None and open_ > most_open:
        yield "connections_max", f"provider {provider.name} allows only {most_open:,} over all its rules"
    for family, keys in _FAMILIES.items():
        for key in keys:
            most = getattr(rule, key)
            for other in keys:
                bound = None if most is None else _allowed(provider, other, span_of(key), family)
                if bound is not None and most > bound[0]:
                    yield key, f"provider {provider.name}: {bound[1]}"
                    break


def _is_counted_within(rule: Rule, provider: Provider) -> bool:
    """True when all that one count of the rule takes in belongs to one count of the provider."""
    return provider.scope is Scope.SHARED or rule.scope is not Scope.SHARED


def _backoff_faults(rule: Rule) -> Iterator[tuple[str, str]]:
    if rule.backoff is None:
        return
    for key in LIMIT_KEYS:
        usual, twin = getattr(rule, key), getattr(rule.backoff, key)
        if usual is None:
            continue
        if twin is None:
            if not _is_kept_anyway(rule, rule.backoff, key, usual):
                what = f"{key} {usual:,} does not hold in backoff: the twin set stands instead of it and has none"
                yield key, f"backoff: {what}; give it one"
        elif twin < usual if key == "ramp_up_s" else twin > usual:
            what = f"{key} {twin:,} is looser than the usual {usual:,}"
            yield key, f"backoff: {what}; the twin limits are meant to be tighter"


def _is_kept_anyway(rule: Rule, twin: Limits, key: str, usual: int) -> bool:
    """True when the limits of the twin set do not let more pass than a limit that is not among them would."""
    if key == "connections_per_path_max":
        return twin.connections_max is not None and twin.connections_max <= usual
    if key == "messages_per_connection_max":
        # Messages that are few and far between: the session is idle for too long before it has had too many.
        return any(
            one.most <= usual and one.span_s / one.most > rule.timeouts.idle_s for one in twin.message_ceilings()
        )
    for family, keys in _FAMILIES.items():
        if key in keys:
            bounds = (_allowed(twin, other, span_of(key), family) for other in keys)
            return any(bound is not None and bound[0] <= usual for bound in bounds)
    return False


# --- places -----------------------------------------------------------------------------------


def _origins(rules: RuleSet, owner: str, otherwise: str) -> Callable[[str], str]:
    return lambda key: rules.origins.get((owner, key), otherwise)


def _starts(rules: RuleSet) -> list[tuple[str, int]]:
    """Where tables begin, as far as that is known."""
    origins = [rule.origin for rule in rules.rules]
    origins += [rule.provider.origin for rule in rules.rules if rule.provider is not None]
    origins += [one.origin for rule in rules.rules for one in rule.automations]
    origins += [plan.origin for plan in rules.warm_ups]
    origins += [block.origin for block in rules.error_blocks]
    return sorted({place for origin in origins if (place := _place(origin)) is not None})


def _place(origin: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(.*):(\d+)", origin)
    return (match[1], int(match[2])) if match else None


def _is_own(rule: Rule, where: str, starts: Sequence[tuple[str, int]]) -> bool:
    """True when the value stands in the rule's own table (or nobody knows where it stands)."""
    begin, place = _place(rule.origin), _place(where)
    if begin is None or place is None or begin == place:
        return True
    return begin[0] == place[0] and begin < place and not any(begin < start <= place for start in starts)
