"""When a deferred recipient is tried again (campaign-mta §1 Retries; §12 rows 8 and 9)."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from mta.model.errors import BadInput

_Count = Annotated[int, msgspec.Meta(ge=0, le=1000)]
_Period = Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)]


class RetrySchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``first_count`` retries, ``first_period_s`` apart; then one every ``then_period_s`` until validity ends."""

    first_count: _Count = 5
    first_period_s: _Period = 3_600
    then_period_s: _Period = 86_400

    def next_due(self, attempt: int, now_s: float, valid_until_s: float) -> float | None:
        """When to try again after attempt number ``attempt`` (1 is the first) ended at ``now_s``.

        None when that would not be before the validity ends: then there is no further attempt, and
        the recipient expires at ``valid_until_s``. All three times are of one clock.
        """
        if attempt < 1:
            raise ValueError(f"attempts are counted from 1, not {attempt}")
        due_s = now_s + (self.first_period_s if attempt <= self.first_count else self.then_period_s)
        return due_s if due_s < valid_until_s else None


CLASSIC: Final = RetrySchedule()
FREQUENT: Final = RetrySchedule(first_count=20, first_period_s=1_800, then_period_s=3_600)
PRESETS: Final = {"classic": CLASSIC, "frequent": FREQUENT}

_DECODER: Final = msgspec.json.Decoder(str | RetrySchedule | None)
_FORM: Final = (
    f"expected {' or '.join(f'{name!r}' for name in PRESETS)}, or an object of "
    "first_count (0-1000), first_period_s and then_period_s (1-2592000)"
)


def parse_retry(text: str | bytes | None, where: str) -> RetrySchedule:
    """A delivery's ``retry`` as JSON: null or nothing (the classic schedule), a preset's name, or an object.

    Raises BadInput at ``where``.
    """
    if text is None or not text.strip():
        return CLASSIC
    try:
        value = _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(where, f"{error}; {_FORM}") from None
    if isinstance(value, str):
        if value not in PRESETS:
            raise BadInput(where, f"unknown preset {value!a}; {_FORM}")
        return PRESETS[value]
    return value or CLASSIC
