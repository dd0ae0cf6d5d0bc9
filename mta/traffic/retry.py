"""When a deferred recipient is tried again (campaign-mta §1 Retries; §12 rows 8 and 9)."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from mta.model.errors import BadInput

_Count = Annotated[int, msgspec.Meta(ge=0, le=1000)]
_Period = Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)]
_Ladder = Annotated[tuple[_Period, ...], msgspec.Meta(max_length=100)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

# Who greylists takes the same message from the same address after some minutes. Who still does not after the second
# attempt does something else, and gets the ordinary schedule.
GREYLISTED_ATTEMPTS_MAX: Final = 2


class RetrySchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``first_count`` retries, ``first_period_s`` apart; then one every ``then_period_s`` until validity ends.

    ``ladder_s``, where it is given, takes the place of the first ones: the waits after the first attempt, the second,
    and so on. ``jitter`` is the share of a wait by which it may be longer, so that what failed together does not come
    back together. ``greylist_s`` is the wait after a reply that says so of itself, and at most that after the first
    attempt where any 4yz put the recipient off: most hosts that greylist do not say so. Such a recipient goes again
    from the same egress until it has had ``same_egress_attempts``, for greylisting knows the address that it puts off.
    """

    first_count: _Count = 5
    first_period_s: _Period = 3_600
    then_period_s: _Period = 86_400
    ladder_s: _Ladder = ()
    jitter: _Share = 0.05
    greylist_s: _Period = 300
    same_egress_attempts: _Count = 5

    def next_due(
        self,
        attempt: int,
        now_s: float,
        valid_until_s: float,
        *,
        dice: float = 0.0,
        is_greylisted: bool = False,
        is_put_off: bool = False,
    ) -> float | None:
        """When to try again after attempt number ``attempt`` (1 is the first) ended at ``now_s``.

        ``dice`` (0 to 1) is how much of the jitter is taken. ``is_put_off``: by a 4yz about the recipient;
        ``is_greylisted``: and it said that it is greylisting. None when that would not be before the validity ends:
        then there is no further attempt, and the recipient expires at ``valid_until_s``. All times are of one clock.
        """
        if attempt < 1:
            raise ValueError(f"attempts are counted from 1, not {attempt}")
        wait_s = self._wait_s(attempt, is_greylisted=is_greylisted)
        if is_put_off and attempt == 1:
            wait_s = min(wait_s, self.greylist_s)
        due_s = now_s + wait_s * (1 + self.jitter * dice)
        return due_s if due_s < valid_until_s else None

    def _wait_s(self, attempt: int, *, is_greylisted: bool) -> int:
        if is_greylisted and attempt <= GREYLISTED_ATTEMPTS_MAX:
            return self.greylist_s
        if self.ladder_s:
            return self.ladder_s[attempt - 1] if attempt <= len(self.ladder_s) else self.then_period_s
        return self.first_period_s if attempt <= self.first_count else self.then_period_s


CLASSIC: Final = RetrySchedule()
FREQUENT: Final = RetrySchedule(first_count=20, first_period_s=1_800, then_period_s=3_600)
PRESETS: Final = {"classic": CLASSIC, "frequent": FREQUENT}

_DECODER: Final = msgspec.json.Decoder(str | RetrySchedule | None)
_FORM: Final = (
    f"expected {' or '.join(f'{name!r}' for name in PRESETS)}, or an object of first_count (0-1000), first_period_s, "
    "then_period_s and greylist_s (1-2592000), ladder_s (a list of such), jitter (0-1), same_egress_attempts (0-1000)"
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
