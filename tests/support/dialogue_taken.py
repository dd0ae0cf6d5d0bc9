"""Taking what a dialogue has, as its driver must: by swapping in empty lists."""

from __future__ import annotations

from mta.smtp.dialogue import Dialogue, Kind, Stage


def taken(dialogue: Dialogue) -> bytes:
    """Its output."""
    output, dialogue.output = dialogue.output, []
    return b"".join(output)


def kinds(dialogue: Dialogue) -> list[tuple[int, int, Kind, Stage]]:
    """Its verdicts, without their replies and causes."""
    verdicts, dialogue.verdicts = dialogue.verdicts, []
    return [each[:4] for each in verdicts]
