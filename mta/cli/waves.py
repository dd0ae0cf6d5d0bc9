"""Waves on the command line: asked for by options, shown as a table, warned of when they come too late."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import typer

from mta.cli.terminal import parse_duration, parse_time, print_table, shown
from mta.model.errors import BadInput
from mta.queue.deliveries import Delivery
from mta.traffic.waves import Wave

WaveShare = Annotated[str | None, typer.Option(help="Equal waves of so much: 30%, or a number.", show_default=False)]
WaveEvery = Annotated[str | None, typer.Option(help="Between equal waves: 30m, 12h, 1d.", show_default=False)]
CalendarWaves = Annotated[
    list[str] | None,
    typer.Option("--wave", help="A wave of a calendar, WHEN=SHARE: 2h=10%; may be repeated.", show_default=False),
]


def waves_from(share: str | None, every: str | None, calendar: Sequence[str]) -> str | None:
    """The options as a delivery's ``waves``, JSON; whether it is good is for ``deliveries.create`` to say."""
    if (share is None) is not (every is None):
        raise BadInput("--wave-share", "and --wave-every go together")
    given: dict[str, Any] = {}
    if share is not None and every is not None:
        given |= {"share": _share(share), "every_s": _seconds(every, "--wave-every")}
    if calendar:
        given["calendar"] = [_calendar_wave(text) for text in calendar]
    return msgspec.json.encode(given).decode() if given else None


def _calendar_wave(text: str) -> dict[str, Any]:
    time, separator, share = text.rpartition("=")
    if not separator:
        raise BadInput("--wave", f"{text!a} is not WHEN=SHARE, such as 2h=10% or 2026-01-31T08:00:00+01:00=5000")
    if time[:1].isdigit() and time[-1:].isalpha() and len(time) < 8:
        return {"after_s": _seconds(time, "--wave"), "share": _share(share)}
    return {"at": parse_time(time, "--wave"), "share": _share(share)}


def _seconds(text: str, where: str) -> int:
    return int(parse_duration(text, where).total_seconds())


def _share(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def print_waves(waves: Sequence[Wave]) -> None:
    rows = [(number, wave.due_at, wave.recipients) for number, wave in enumerate(waves, 1)]
    print_table("Waves, as planned at the start", ("wave", "due", "recipients"), rows)


def too_late(found: Delivery) -> Iterator[str]:
    """A warning when the last wave has no time left."""
    if found.has_wave_too_late:
        yield (
            f"the last wave of delivery {found.id} is due at {shown(found.last_wave_at)}, when its validity is over "
            f"({shown(found.valid_until)}): it will expire unsent"
        )
