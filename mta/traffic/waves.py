"""Waves: a delivery in portions that begin one after another (campaign-mta §1 Waves; §12 row 10)."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from typing import Annotated, Final, NamedTuple

import msgspec

from mta.model.errors import BadInput

WAVES_MAX: Final = 1000  # each border between two costs a part that is cut in two
_WHOLE: Final = 10_000  # shares in percent are reckoned in hundredths of one: exact, as floats are not
_PERCENT: Final = re.compile(r"(\d{1,3})(?:\.(\d{1,2}))?%")

_Share = str | Annotated[int, msgspec.Meta(ge=1)]
_Delay = Annotated[int, msgspec.Meta(ge=0, le=366 * 86_400)]


class Wave(NamedTuple):
    """A portion that is due at one time."""

    due_at: datetime.datetime
    recipients: int


class CalendarWave(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One wave of a calendar: ``at`` a time, or ``after_s`` seconds after the start."""

    share: _Share
    after_s: _Delay | None = None
    at: Annotated[datetime.datetime, msgspec.Meta(tz=True)] | None = None


class Waves(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Equal waves (``share`` every ``every_s`` seconds) or a ``calendar``, never both.

    A share is a number of recipients or, as text, a percentage of all that are there at the start. By percentage no
    more has gone at any time than the shares so far allow; the last wave takes all that is left.
    """

    share: _Share | None = None
    every_s: Annotated[int, msgspec.Meta(ge=1, le=366 * 86_400)] | None = None
    calendar: Annotated[list[CalendarWave], msgspec.Meta(min_length=1, max_length=WAVES_MAX)] | None = None

    def plan(self, total: int, started_at: datetime.datetime) -> list[Wave]:
        """The waves of ``total`` recipients (1 or more), earliest first; such as would be empty are left out.

        Raises BadInput when there would be more than ``WAVES_MAX``.
        """
        if self.calendar is None:
            return _planned(total, self._equal(total, started_at))
        steps = [(_time_of(wave, started_at), wave.share) for wave in self.calendar]
        return _planned(total, sorted(steps, key=lambda step: step[0]))

    def _equal(self, total: int, started_at: datetime.datetime) -> list[tuple[datetime.datetime, str | int]]:
        assert self.share is not None
        assert self.every_s is not None
        portion, whole = _reckoned(self.share)
        count = -(-(whole or total) // portion)
        if count > WAVES_MAX:
            raise BadInput("waves", f"would be {count:,} waves, {WAVES_MAX:,} are allowed")
        return [(started_at + datetime.timedelta(seconds=self.every_s * n), self.share) for n in range(count)]


def parse_waves(text: str | bytes | None, where: str) -> Waves | None:
    """A delivery's ``waves`` as JSON; null or nothing: all at once. Raises BadInput at ``where``."""
    if text is None:
        return None
    waves: Waves | None
    try:
        waves = _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(where, f"{error}; {_FORM}") from None
    if waves is not None:
        _check(waves, where)
    return waves


_DECODER: Final = msgspec.json.Decoder(Waves | None)
_FORM: Final = (
    'expected {"share": "30%" or a number of recipients, "every_s": seconds}, or '
    '{"calendar": [{"after_s": seconds or "at": time, "share": ...}, ...]}'
)


def _check(waves: Waves, where: str) -> None:
    is_equal = waves.share is not None and waves.every_s is not None
    has_any = waves.share is not None or waves.every_s is not None
    if waves.calendar is not None if has_any else waves.calendar is None:
        raise BadInput(where, f"must be equal waves or a calendar; {_FORM}")
    if has_any and not is_equal:
        raise BadInput(where, f"equal waves need share and every_s; {_FORM}")
    percent = 0
    for step in waves.calendar or [CalendarWave(waves.share or 1, after_s=0)]:
        if (step.after_s is None) is (step.at is None):
            raise BadInput(where, f"a wave of a calendar has after_s or at, one of them; {_FORM}")
        portion, whole = _reckoned(step.share, where)
        percent += portion if whole else 0
    if percent > _WHOLE:
        raise BadInput(where, f"the shares are {percent / 100:g} % together, 100 % are all")


def _reckoned(share: str | int, where: str = "waves") -> tuple[int, int]:
    """(hundredths of a percent, all of them), or (recipients, 0)."""
    if isinstance(share, int):
        return share, 0
    match = _PERCENT.fullmatch(share)
    hundredths = int(match[1]) * 100 + int((match[2] or "").ljust(2, "0")) if match else 0
    if not 1 <= hundredths <= _WHOLE:
        raise BadInput(where, f"{share!a} is no share: write 30% or 12.5%, up to 100%, or a number of recipients")
    return hundredths, _WHOLE


def _time_of(wave: CalendarWave, started_at: datetime.datetime) -> datetime.datetime:
    if wave.at is not None:
        return max(wave.at, started_at)
    return started_at + datetime.timedelta(seconds=wave.after_s or 0)


def _planned(total: int, steps: Iterable[tuple[datetime.datetime, str | int]]) -> list[Wave]:
    waves: list[Wave] = []
    steps = list(steps)
    gone = hundredths = recipients = 0
    for number, (due_at, share) in enumerate(steps, 1):
        portion, whole = _reckoned(share)
        hundredths += portion if whole else 0
        recipients += 0 if whole else portion
        border = total if number == len(steps) else min(total, total * hundredths // _WHOLE + recipients)
        if border > gone:
            waves.append(Wave(due_at, border - gone))
        gone = border
    return waves
