"""For how long what a traffic event holds back (`mta.traffic.holds`) is put off to the queue."""

from __future__ import annotations

from typing import Final

from mta.master.new_parts import SITE_PART_MIN

# What is put off until an event ends is due no later than after this, whatever the event says: so a node that died
# between the end of the event and the word of it costs an hour, not the days that an event may have left.
PUT_OFF_S_MAX: Final = 3_600.0
# A few recipients come back in a part with others, so that nobody can find them when the event ends early.
FEW: Final = SITE_PART_MIN
PUT_OFF_FEW_S_MAX: Final = 30.0


def put_off_site(domain: str) -> str:
    """What stands for a site in parts whose recipients wait for the end of their domain's block."""
    return f"@{domain}"


def put_off_s(until_unix_s: float, now_unix_s: float, recipients: int) -> float:
    """In how many seconds recipients are due that wait for the end of an event."""
    most_s = PUT_OFF_FEW_S_MAX if recipients < FEW else PUT_OFF_S_MAX
    return min(most_s, max(0.0, until_unix_s - now_unix_s))
