"""Rules as the nodes obey them now."""

from __future__ import annotations

from mta.queue import rule_sets, updates
from mta.queue.connection import Conn
from mta.settings import Settings
from mta.settings.shipped import load_updated_rules, parse_updated_rules
from mta.traffic.rules import RuleSet


async def rules_in_force(conn: Conn, settings: Settings) -> RuleSet:
    """Those that were applied last, with their deliverability update; before any, those that ``settings`` name."""
    texts = await updates.texts_in_force(conn)
    found = await rule_sets.in_force(conn)
    if found is not None:
        return parse_updated_rules(found[1].root, found[1].texts, texts)
    return RuleSet() if settings.rules_file is None else load_updated_rules(settings.rules_file, texts)
