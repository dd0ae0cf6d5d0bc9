"""One attempt to take an update, from the source to the history: fetched, checked as a whole, put into force.

Whatever goes wrong on the way changes nothing but the history.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mta.bundle.fetch import FetchFailed, fetch
from mta.bundle.form import Opened, open_bundle
from mta.model.errors import BadInput
from mta.queue import rule_sets, updates
from mta.queue.connection import Conn
from mta.queue.updates import InForce, Result, Update
from mta.settings.bounce_rules import parse_bounce_rules
from mta.settings.config import Settings
from mta.settings.shipped import (
    BOUNCE_RULES,
    PROVIDERS,
    load_updated_bounce_rules,
    load_updated_rules,
    parse_updated_rules,
)


class Outcome(msgspec.Struct, frozen=True):
    """What came of an attempt. ``update``: what was put into force by it."""

    result: Result
    detail: str
    version: int | None = None
    update: Update | None = None


async def take_update(
    conn: Conn,
    settings: Settings,
    by_whom: str,
    *,
    source: str = "",
    allow_older: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Takes what the source holds (empty: that of the settings), if it may be taken; the attempt is on record.

    Raises BadInput, with nothing on record, when there is no source or no key: the settings are not ready for it.
    """
    own = settings.deliverability
    source = source or own.source
    if not source:
        raise BadInput("deliverability.source", "is not set: name a file or an https URL there, or give --from")
    if not own.public_keys:
        raise BadInput("deliverability.public_keys", "is empty: whose signature counts? Nothing is taken without one")
    opened: Opened | None = None
    try:
        content = await fetch(source, ca_file=own.ca_file)
        opened = await asyncio.to_thread(open_bundle, content, own.public_keys, source)
        outcome = await _use(conn, settings, opened, source, by_whom, allow_older=allow_older, dry_run=dry_run)
    except FetchFailed as error:
        outcome = Outcome(Result.FAILED, str(error))
    except InForce as error:
        outcome = Outcome(Result.CURRENT, str(error), None if opened is None else opened.manifest.version)
    except BadInput as error:
        outcome = Outcome(Result.REFUSED, str(error), None if opened is None else opened.manifest.version)
    if outcome.update is None:
        await updates.record(conn, by_whom, source, outcome.result, version=outcome.version, detail=outcome.detail)
    return outcome


async def _use(
    conn: Conn, settings: Settings, opened: Opened, source: str, by_whom: str, *, allow_older: bool, dry_run: bool
) -> Outcome:
    version = opened.manifest.version
    await updates.check_newer(conn, version, opened.digest, allow_older=allow_older)
    await check_texts(conn, settings, opened.texts, f"bundle {version}")
    if dry_run:
        return Outcome(Result.TRIED, f"bundle {version}: can be applied; nothing is changed", version)
    update = await updates.apply(conn, opened.candidate, source, by_whom, allow_older=allow_older)
    return Outcome(Result.APPLIED, f"bundle {version}: is in force on all nodes", version, update)


async def check_texts(conn: Conn, settings: Settings, texts: dict[str, str], origin: str) -> None:
    """Loads everything as the daemons will: with the operator's own files here, and with the MX rules in force.

    Raises BadInput with file, line and key; ``origin`` names the bundle in it.
    """
    found = await rule_sets.in_force(conn)
    await asyncio.to_thread(_check_files, settings.failures.rules_files, settings.rules_file, texts, origin)
    if found is not None:
        await asyncio.to_thread(parse_updated_rules, found[1].root, found[1].texts, texts, origin)


def _check_files(bounce_rules: Sequence[Path], rules: Path | None, texts: dict[str, str], origin: str) -> None:
    # By themselves, too: an operator's settings need not use either of them, and other nodes may.
    parse_bounce_rules({f"{origin}/{BOUNCE_RULES}": texts[BOUNCE_RULES]})
    parse_updated_rules(PROVIDERS, {PROVIDERS: ""}, texts, origin)
    load_updated_bounce_rules(bounce_rules, texts, origin)
    if rules is not None:
        load_updated_rules(rules, texts, origin)
