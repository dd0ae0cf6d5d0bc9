"""The schedule of a run, as the settings bound it."""

from __future__ import annotations

import random

from mta.master.books import LeasedPart
from mta.master.children import raise_file_limit
from mta.settings.config import Settings
from mta.traffic.rules import RuleSet
from mta.traffic.schedule import Bounds, Schedule


def new_schedule(rules: RuleSet, settings: Settings, unix_offset_s: float) -> Schedule[LeasedPart]:
    bounds = Bounds(
        settings.children.batch_recipients,
        raise_file_limit(settings.children.sessions_max),
        settings.master.ready_per_site_max,
        settings.master.ready_recipients_max,
        addresses_per_attempt_max=settings.smtp.addresses_per_attempt_max,
        sessions_per_attempt_max=settings.smtp.sessions_per_attempt_max,
    )
    return Schedule(rules, bounds, unix_offset_s=unix_offset_s, shuffle=random.SystemRandom().shuffle)
