"""Deliveries: made, shown, started, paused, resumed, cancelled, sealed. Every change is announced on ``NOTIFY mta``.

Payloads of the channel are two words: ``delivery 17`` (its row changed), ``append 17`` (parts were added).
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import msgspec

from mta.message.content import check_content, load_content
from mta.model.duplicates import DeliveryKind, Duplicates
from mta.model.errors import BadInput
from mta.model.limits import PART_RECIPIENTS_MAX
from mta.model.outcome import InDoubtPolicy
from mta.queue import duplicates
from mta.queue import waves as waves_of
from mta.queue.connection import Conn
from mta.queue.states import Action, DeliveryState, next_state
from mta.traffic.retry import parse_retry
from mta.traffic.waves import parse_waves

CHANNEL: Final = "mta"
NAME_CHARS_MAX: Final = 200
PRIORITY_MAX: Final = 4  # the most urgent, see mta.traffic.fair
WEIGHT_MAX: Final = 1000
DEFAULT_VALIDITY: Final = datetime.timedelta(days=5)  # RFC 5321 §4.5.4.1: "at least 4-5 days"
SEAL_TIMEOUT_MS: Final = 10_000

_COLUMNS = """
SELECT d.id, d.name, d.state, d.sealed, d.priority, d.weight, d.egress_pool, d.in_doubt_policy, d.part_recipients,
       d.starts_at, d.validity, d.created_at, d.started_at, d.valid_until, d.ended_at,
       d.waves::text AS waves, d.last_wave_at, d.is_simulated, d.deadline,
       (SELECT coalesce(sum(recipients), 0)::bigint FROM mta.delivery_append WHERE delivery_id = d.id) AS appended,
       (SELECT coalesce(sum(count), 0)::bigint FROM mta.delivery_part WHERE delivery_id = d.id AND held) AS held,
       coalesce(s.delivered, 0) AS delivered, coalesce(s.failed, 0) AS failed, coalesce(s.expired, 0) AS expired,
       coalesce(s.cancelled, 0) AS cancelled, coalesce(s.simulated, 0) AS simulated,
       coalesce(s.deferrals, 0) AS deferrals, coalesce(s.in_doubt, 0) AS in_doubt,
       coalesce(s.excluded, 0)
       + (SELECT coalesce(sum(excluded + duplicates), 0)::bigint FROM mta.delivery_append WHERE delivery_id = d.id)
           AS excluded,
       (SELECT coalesce(sum(duplicates), 0)::bigint FROM mta.delivery_append WHERE delivery_id = d.id)
           AS excluded_duplicates,
       (SELECT coalesce(sum(count), 0)::bigint FROM mta.delivery_part
        WHERE delivery_id = d.id AND due_when_checked IS NOT NULL) AS unchecked,
       coalesce(s.bounced, 0) AS bounced, coalesce(s.complaints, 0) AS complaints,
       coalesce(s.unsubscribed, 0) AS unsubscribed, d.keeps_quarantined,
       d.kind, d.duplicates, d.duplicates_ignore_case
FROM mta.delivery d LEFT JOIN mta.delivery_stats s ON s.delivery_id = d.id
"""
_SHOW = _COLUMNS + "WHERE d.id = $1"
_LIST = _COLUMNS + "WHERE $1::text IS NULL OR d.state = $1 ORDER BY d.id DESC LIMIT $2"
_CREATE = """
WITH made AS (
    INSERT INTO mta.delivery (name, content, priority, weight, egress_pool, in_doubt_policy, part_recipients,
                              starts_at, validity, retry, waves, is_simulated, deadline, keeps_quarantined,
                              kind, duplicates, duplicates_ignore_case)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::jsonb, $11::text::jsonb, $12, $13, $14, $15, $16, $17)
    RETURNING id
)
INSERT INTO mta.delivery_stats (delivery_id) SELECT id FROM made RETURNING delivery_id
"""
# Part size and time of start are of the one delivery and are not copied (campaign-mta §12 row 3).
_DUPLICATE = """
WITH made AS (
    INSERT INTO mta.delivery (name, content, priority, weight, egress_pool, in_doubt_policy, validity, retry, waves,
                              is_simulated, kind, duplicates, duplicates_ignore_case)
    SELECT coalesce($2, name), content, priority, weight, egress_pool, in_doubt_policy, validity, retry, waves,
           coalesce($3, is_simulated), kind, duplicates, duplicates_ignore_case
    FROM mta.delivery WHERE id = $1 RETURNING id
)
INSERT INTO mta.delivery_stats (delivery_id) SELECT id FROM made RETURNING delivery_id
"""
_CONTENT = "SELECT content FROM mta.delivery WHERE id = $1"
_STATE_FOR_CHANGE = "SELECT state FROM mta.delivery WHERE id = $1 FOR NO KEY UPDATE"
# A scheduled delivery is running at once, but its started_at lies ahead: nothing is claimed before it.
_START = """
UPDATE mta.delivery
SET state = 'running', started_at = greatest(now(), starts_at), valid_until = greatest(now(), starts_at) + validity,
    last_wave_at = $2
WHERE id = $1
"""
# None once it was started: then they are in its parts.
_WAVES = "SELECT waves::text FROM mta.delivery WHERE id = $1 AND state = 'editing'"
_SCHEDULE = "UPDATE mta.delivery SET starts_at = $2 WHERE id = $1"
_BEGINS_AT = "SELECT greatest(now(), starts_at) FROM mta.delivery WHERE id = $1"
_SET_STATE = """
UPDATE mta.delivery
SET state = $2, ended_at = CASE WHEN $2 = 'finished' THEN now() ELSE ended_at END,
    -- Cancelled before it was started: daemons see it all the same, and need an end of its validity.
    valid_until = CASE WHEN $2 = 'cancelled' THEN coalesce(valid_until, now()) ELSE valid_until END
WHERE id = $1
"""
_SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', $1, true)"
_NO_APPENDS_LOCK = "SELECT pg_advisory_xact_lock(20180, ($1::bigint & 2147483647)::int)"
_SEAL = "UPDATE mta.delivery SET sealed = true WHERE id = $1 AND NOT sealed"
_NOTIFY = "SELECT pg_notify('mta', $1)"


class NewDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says of a delivery. ``content`` is JSON, see ``mta.message.content``."""

    name: str
    content: bytes
    priority: int = 2
    weight: int = 1
    egress_pool: str = "default"
    in_doubt_policy: InDoubtPolicy = InDoubtPolicy.RESEND
    part_recipients: int = 0  # 0: automatic
    starts_at: datetime.datetime | None = None  # aware
    validity: datetime.timedelta = DEFAULT_VALIDITY
    retry: str | None = None  # JSON, see mta.traffic.retry; None: the classic schedule
    waves: str | None = None  # JSON, see mta.traffic.waves; None: all at once
    is_simulated: bool = False  # MAIL and RCPT are asked, nothing is sent
    deadline: datetime.datetime | None = None  # aware; it goes before others as it nears, see mta.traffic.fair
    keeps_quarantined: bool = False  # a proof: also who is in quarantine or denylisted is mailed
    kind: DeliveryKind = DeliveryKind.CAMPAIGN
    duplicates: Duplicates | None = None  # None: as the kind has it
    duplicates_ignore_case: bool = False  # Ann@ and ann@ are one mailbox too

    @property
    def excludes_duplicates(self) -> bool:
        return (self.duplicates or self.kind.duplicates) is Duplicates.EXCLUDE


class Delivery(msgspec.Struct, frozen=True):
    """A delivery with its counters: recipients, except for ``deferrals`` and ``in_doubt``, which count attempts."""

    id: int
    name: str
    state: DeliveryState
    sealed: bool
    priority: int
    weight: int
    egress_pool: str
    in_doubt_policy: InDoubtPolicy
    part_recipients: int
    starts_at: datetime.datetime | None
    validity: datetime.timedelta
    created_at: datetime.datetime
    started_at: datetime.datetime | None
    valid_until: datetime.datetime | None
    ended_at: datetime.datetime | None
    waves: str | None
    last_wave_at: datetime.datetime | None
    is_simulated: bool
    deadline: datetime.datetime | None
    appended: int
    held: int
    delivered: int
    failed: int
    expired: int
    cancelled: int
    simulated: int
    deferrals: int
    in_doubt: int
    excluded: int  # not mailed: in quarantine, denylisted, or a duplicate
    excluded_duplicates: int  # of those
    unchecked: int  # wait to be looked at for duplicates
    bounced: int  # of those delivered, came back by mail
    complaints: int
    unsubscribed: int
    keeps_quarantined: bool  # a proof: it excludes nobody
    kind: DeliveryKind
    duplicates: Duplicates
    duplicates_ignore_case: bool

    @property
    def final(self) -> int:
        """Recipients with a final outcome."""
        return self.delivered + self.failed + self.expired + self.cancelled + self.simulated + self.excluded

    @property
    def waiting(self) -> int:
        """Recipients still without one, held ones included."""
        return self.appended - self.final

    @property
    def has_wave_too_late(self) -> bool:
        """Its last wave begins when its validity is over, so it will expire unsent."""
        return self.last_wave_at is not None and self.valid_until is not None and self.last_wave_at >= self.valid_until


async def create(conn: Conn, new: NewDelivery) -> int:
    """Make a delivery in state ``editing``; answers its id. BadInput names the field."""
    _check_new(new)
    # The fields that its recipients will bring are not known yet: append compares them.
    check_content(load_content(new.content, "content"), None)
    made: int = await conn.fetchval(
        _CREATE,
        new.name,
        new.content,
        new.priority,
        new.weight,
        new.egress_pool,
        new.in_doubt_policy.value,
        new.part_recipients,
        new.starts_at,
        new.validity,
        new.retry,
        new.waves,
        new.is_simulated,
        new.deadline,
        new.keeps_quarantined,
        new.kind.value,
        (new.duplicates or new.kind.duplicates).value,
        new.duplicates_ignore_case,
    )
    await announce(conn, made)
    return made


async def duplicate(conn: Conn, delivery_id: int, *, name: str | None = None, is_simulated: bool | None = None) -> int:
    """A new delivery like another, without its recipients; answers its id. Its parts are sized automatically."""
    if name is not None:
        _check_text("name", name)
    made: int | None = await conn.fetchval(_DUPLICATE, delivery_id, name, is_simulated)
    if made is None:
        raise no_such_delivery(delivery_id)
    await announce(conn, made)
    return made


async def show(conn: Conn, delivery_id: int) -> Delivery:
    row = await conn.fetchrow(_SHOW, delivery_id)
    if row is None:
        raise no_such_delivery(delivery_id)
    return _delivery(row)


async def content(conn: Conn, delivery_id: int) -> bytes:
    """The message content as stored, JSON."""
    stored: bytes | None = await conn.fetchval(_CONTENT, delivery_id)
    if stored is None:
        raise no_such_delivery(delivery_id)
    return stored


async def fields_used(conn: Conn, delivery_id: int) -> frozenset[str]:
    """The merge fields of its content, built-in ones left out."""
    return check_content(load_content(await content(conn, delivery_id), f"delivery {delivery_id}"), None)


async def list_deliveries(conn: Conn, *, state: DeliveryState | None = None, limit: int = 50) -> list[Delivery]:
    """The newest first."""
    return [_delivery(row) for row in await conn.fetch(_LIST, state and state.value, limit)]


async def start(
    conn: Conn, delivery_id: int, *, at: datetime.datetime | None = None, timeout_ms: int = SEAL_TIMEOUT_MS
) -> DeliveryState:
    """Begin sending, from ``at`` (aware; else ``starts_at``) on when there is one; its validity runs from then.

    With waves its recipients are portioned now, and it waits for appends that are open, at most ``timeout_ms``.
    """
    if at is not None and at.tzinfo is None:
        raise BadInput("at", "has no time zone")
    waves = parse_waves(await conn.fetchval(_WAVES, delivery_id), "waves")
    if waves is not None:
        await duplicates.check(conn, delivery_id)  # nearly all of it, while appends go on
    transaction = conn.transaction() if waves is None else _without_appends(conn, delivery_id, timeout_ms, "started")
    async with transaction:
        if await _may_start(conn, delivery_id, at):
            last_wave_at = None
            if waves is not None:
                await duplicates.check(conn, delivery_id)
                begins_at = await conn.fetchval(_BEGINS_AT, delivery_id)
                last_wave_at = await waves_of.assign(conn, delivery_id, waves, begins_at)
            await conn.execute(_START, delivery_id, last_wave_at)
            await announce(conn, delivery_id)
    return DeliveryState.RUNNING


async def _may_start(conn: Conn, delivery_id: int, at: datetime.datetime | None) -> bool:
    """Locks the delivery; True when it is to be started now, False when it runs already. BadInput when it cannot."""
    state = await conn.fetchval(_STATE_FOR_CHANGE, delivery_id)
    if state is None:
        raise no_such_delivery(delivery_id)
    is_changing = next_state(delivery_id, DeliveryState(state), Action.START) is not DeliveryState(state)
    if at is not None:
        if not is_changing:
            raise BadInput(f"delivery {delivery_id}", "was started before: its time cannot be set any more")
        await conn.execute(_SCHEDULE, delivery_id, at)
    return is_changing


async def pause(conn: Conn, delivery_id: int) -> DeliveryState:
    """Stop handing out its recipients. Never waits for an append that is open. Its validity and its waves run on."""
    return await _change_state(conn, delivery_id, Action.PAUSE)


async def resume(conn: Conn, delivery_id: int) -> DeliveryState:
    return await _change_state(conn, delivery_id, Action.RESUME)


async def cancel(conn: Conn, delivery_id: int) -> DeliveryState:
    """Send no more of it; a daemon records its waiting recipients as CANCELLED."""
    return await _change_state(conn, delivery_id, Action.CANCEL)


async def _change_state(conn: Conn, delivery_id: int, action: Action) -> DeliveryState:
    """Apply the table of ``mta.queue.states``; answers the state after it. BadInput when it cannot be."""
    async with conn.transaction():
        state = await conn.fetchval(_STATE_FOR_CHANGE, delivery_id)
        if state is None:
            raise no_such_delivery(delivery_id)
        after = next_state(delivery_id, DeliveryState(state), action)
        if after != state:
            await conn.execute(_SET_STATE, delivery_id, after.value)
            await announce(conn, delivery_id)
    return after


async def seal(conn: Conn, delivery_id: int, *, timeout_ms: int = SEAL_TIMEOUT_MS) -> int:
    """Nothing more will be appended: waits for appends that are open, at most ``timeout_ms``. Idempotent.

    Then looks for duplicates, some seconds for a million recipients; answers how many it excluded. If it is cut short
    there, the delivery is sealed all the same, and is looked at when it runs.
    """
    async with _without_appends(conn, delivery_id, timeout_ms, "sealed"):
        if await conn.fetchval(_STATE_FOR_CHANGE, delivery_id) is None:
            raise no_such_delivery(delivery_id)
        await conn.execute(_SEAL, delivery_id)
        await announce(conn, delivery_id)
    return await duplicates.check(conn, delivery_id)


@contextlib.asynccontextmanager
async def _without_appends(conn: Conn, delivery_id: int, timeout_ms: int, what: str) -> AsyncIterator[None]:
    """A transaction that began when no append to the delivery was open, and lets none begin."""
    try:
        async with conn.transaction():
            await conn.execute(_SET_LOCK_TIMEOUT, str(timeout_ms))
            await conn.execute(_NO_APPENDS_LOCK, delivery_id)
            yield
    except asyncpg.LockNotAvailableError as error:
        why = f"a transaction that appends to it was still open after {timeout_ms / 1000:g} s"
        raise BadInput(f"delivery {delivery_id}", f"cannot be {what} now: {why}") from error


async def announce(conn: Conn, delivery_id: int) -> None:
    """Tell every daemon that this delivery's row has changed (when the transaction commits)."""
    await conn.execute(_NOTIFY, f"delivery {delivery_id}")


def no_such_delivery(delivery_id: int) -> BadInput:
    return BadInput(f"delivery {delivery_id}", "does not exist")


def _delivery(row: asyncpg.Record) -> Delivery:
    return msgspec.convert(dict(row), Delivery)


def _check_text(where: str, text: str) -> None:
    if not text.strip() or len(text) > NAME_CHARS_MAX or not text.isprintable():
        raise BadInput(where, f"must be 1 to {NAME_CHARS_MAX} printable characters, and not only spaces")


def _check_new(new: NewDelivery) -> None:
    _check_text("name", new.name)
    _check_text("egress_pool", new.egress_pool)
    for where, value, least, most in (
        ("priority", new.priority, 0, PRIORITY_MAX),
        ("weight", new.weight, 1, WEIGHT_MAX),
        ("part_recipients", new.part_recipients, 0, PART_RECIPIENTS_MAX),
    ):
        if not least <= value <= most:
            raise BadInput(where, f"is {value}, allowed are {least} to {most}")
    if new.starts_at is not None and new.starts_at.tzinfo is None:
        raise BadInput("starts_at", "has no time zone")
    if new.deadline is not None and new.deadline.tzinfo is None:
        raise BadInput("deadline", "has no time zone")
    if new.validity <= datetime.timedelta(0):
        raise BadInput("validity", "must be longer than nothing")
    parse_retry(new.retry, "retry")
    parse_waves(new.waves, "waves")
    if new.duplicates_ignore_case and not new.excludes_duplicates:
        raise BadInput(
            "duplicates_ignore_case", "compares addresses of duplicates, and those of this delivery are kept"
        )
