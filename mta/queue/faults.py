"""Refusals for our own fault, by egress or sender domain: counted in the log, and alerts about them.

Whose fault it is goes by the category. What is said of the sender (its authentication, its content) is counted by the
domain in ``From``, over all egresses; everything else by the egress that was refused. Each is counted at every site,
and once more at all those sites together that have no alert of their own: a listing is felt at a thousand small ones,
by a few refusals each.

An alert is raised once, stays open while its bounds are crossed, and ends an hour after the last time.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from mta.message.keyring import sender_domain_of
from mta.model.failure import OUR_FAULT, Category
from mta.queue.connection import Conn

WINDOWS_MIN: Final = (15, 60)
LOOK_S: Final = 55  # between two looks of whichever node
GROUPS_MAX: Final = 20_000
FAULTS_MAX: Final = 50  # at single sites, at a time; whatever is beyond them counts with the many
QUIET: Final = datetime.timedelta(hours=1)
# What servers hold against the sender's domain and its messages rather than against the address it came from.
OF_SENDER: Final = frozenset(
    {
        *(Category.AUTH_FAILURE, Category.SENDER_REFUSED, Category.SPAM_CONTENT, Category.VIRUS),
        Category.TOO_BIG,
    }
)
_REPLY_CHARS_MAX: Final = 300
_OURS: Final = ", ".join(str(int(one)) for one in sorted(OUR_FAULT))
# As what greylisting is qualified, whatever it says of itself: of a first attempt it is no fault of anybody's.
_GREYLISTS: Final = f"{int(Category.RATE_LIMITED)}, {int(Category.POLICY)}"
_TAKE_TURN: Final = """
UPDATE mta.alert_look SET looked_at = clock_timestamp()
WHERE looked_at < clock_timestamp() - make_interval(secs => $1) RETURNING true
"""
# By the index of what did not go well, which good lines never touch.
REFUSED: Final = f"""
SELECT egress, delivery_id, site, category,
       count(*) FILTER (WHERE at >= now() - make_interval(mins => $1)) AS short, count(*) AS long,
       min(at) AS since, max(at) AS last_at
FROM mta.delivery_log
WHERE at >= now() - make_interval(mins => $2) AND status NOT IN (1, 5) AND status IN (2, 10)
  AND category IN ({_OURS}) AND NOT (status = 10 AND attempt <= 1 AND category IN ({_GREYLISTS}))
GROUP BY 1, 2, 3, 4 ORDER BY long DESC LIMIT {GROUPS_MAX}
"""  # noqa: S608 - put together from constants
# Attempts at the sites that are asked about, good and bad.
ATTEMPTED: Final = """
SELECT egress, delivery_id, site,
       count(*) FILTER (WHERE at >= now() - make_interval(mins => $1)) AS short, count(*) AS long
FROM mta.delivery_log
WHERE at >= now() - make_interval(mins => $2) AND status IN (1, 2, 5, 10, 11) AND attempt > 0 AND site = ANY($3)
GROUP BY 1, 2, 3
"""
# The same at all sites: of deliveries from the log, of egresses from the minutes, which cost nothing.
_OF_DELIVERIES: Final = """
SELECT ''::text AS egress, delivery_id, ''::text AS site,
       count(*) FILTER (WHERE at >= now() - make_interval(mins => $1)) AS short, count(*) AS long
FROM mta.delivery_log
WHERE at >= now() - make_interval(mins => $2) AND status IN (1, 2, 5, 10, 11) AND attempt > 0
GROUP BY 2
"""
_OF_EGRESSES: Final = """
SELECT egress, 0::bigint AS delivery_id, ''::text AS site,
       coalesce(sum(n) FILTER (WHERE minute >= date_trunc('minute', now()) - make_interval(mins => $1)), 0)::bigint
       AS short, sum(n)::bigint AS long
FROM (SELECT minute, egress, delivered + failed + simulated + deferred + in_doubt AS n FROM mta.traffic_minute
      WHERE minute >= date_trunc('minute', now()) - make_interval(mins => $2)) m
GROUP BY egress
"""
_PATIENCE: Final = "SET LOCAL statement_timeout = '30s'"
_SENDERS: Final = "SELECT id, content FROM mta.delivery WHERE id = ANY($1::bigint[])"
_SAMPLE: Final = """
SELECT code, enhanced, reply FROM mta.delivery_log
WHERE at BETWEEN $1::timestamptz - interval '1 second' AND $1 AND status NOT IN (1, 5) AND category = $2
  AND ($3::text IS NULL OR egress = $3) AND ($4::bigint[] IS NULL OR delivery_id = ANY($4))
  AND ($5::text IS NULL OR site = $5)
ORDER BY at DESC LIMIT 1
"""
_RAISE: Final = """
INSERT INTO mta.alert (key, kind, egress, sender, site, category, detail, reply, since, seen_at)
VALUES ($1, 'our-fault', $2, $3, $4, $5, $6, $7, $8, now())
ON CONFLICT (kind, egress, sender, site, category, node, cause) WHERE delivery_id IS NULL AND ended_at IS NULL
DO UPDATE SET seen_at = now(), detail = excluded.detail, reply = excluded.reply
RETURNING xmax = 0 AS is_new
"""
_END: Final = """
UPDATE mta.alert SET ended_at = now()
WHERE delivery_id IS NULL AND ended_at IS NULL AND seen_at < now() - $1::interval
"""


class Bound(msgspec.Struct, frozen=True):
    """So many refusals in a window, when they are such a part of the attempts there (percent)."""

    refusals_min: int
    percent_min: float

    def is_crossed(self, refused: int, attempted: int) -> bool:
        return refused >= self.refusals_min and 100 * refused >= self.percent_min * attempted


# "Later" is everyday: greylisting, and providers that slow down whoever is new.
DEFAULT_CATEGORIES: Final[Mapping[Category, Bound]] = {Category.RATE_LIMITED: Bound(200, 30.0)}


class FaultBounds(msgspec.Struct, frozen=True):
    """``[alarms]`` of the settings: the bound of each category, where it is another than that of the rest."""

    others: Bound = Bound(20, 5.0)
    categories: Mapping[Category, Bound] = msgspec.field(default_factory=lambda: dict(DEFAULT_CATEGORIES))

    def of(self, category: Category) -> Bound:
        return self.categories.get(category, self.others)


class Fault(msgspec.Struct, frozen=True):
    """Refusals above a bound. Either ``egress`` or ``sender`` (a domain) is set; ``site`` empty: several sites."""

    egress: str
    sender: str
    site: str
    category: Category
    minutes: int  # the window
    refused: int
    attempted: int
    since: datetime.datetime
    reply: str

    @property
    def subject(self) -> str:
        whose = f"egress {self.egress}" if self.egress else f"sender domain {self.sender}"
        return f"{whose} at {self.site or 'many sites'}"

    @property
    def detail(self) -> str:
        share = 100 * self.refused / max(self.attempted, self.refused, 1)
        return (
            f"{self.subject}: {self.refused:,} of {self.attempted:,} attempts in {self.minutes} minutes"
            f" ({share:.1f} %) refused as {self.category.label}"
        )


class _Tally(NamedTuple):
    """Counts in both windows."""

    short: int = 0
    long: int = 0

    def plus(self, short: int, long: int) -> _Tally:
        return _Tally(self.short + short, self.long + long)


class _Subject(NamedTuple):
    egress: str
    sender: str
    site: str  # empty: all


class _Refused(NamedTuple):
    tally: _Tally
    since: datetime.datetime
    last_at: datetime.datetime


_Refusals = dict[tuple[_Subject, Category], _Refused]


async def look(conn: Conn, bounds: FaultBounds | None = None, *, is_turn_taken: bool = False) -> list[Fault]:
    """Raises and ends alerts; those that are new. Of nodes that look at the same time one does it.

    ``is_turn_taken``: look in any case.
    """
    bounds = bounds or FaultBounds()
    async with conn.transaction():
        if not is_turn_taken and not await conn.fetchval(_TAKE_TURN, LOOK_S):
            return []
    new = []
    async with conn.transaction():
        await conn.execute(_PATIENCE)
        found = await faults(conn, bounds)
        for one in found:
            key = f"our-fault {one.category.label} {one.subject} {one.since.isoformat()}"
            values = (key, one.egress, one.sender, one.site, int(one.category), one.detail, one.reply, one.since)
            if await conn.fetchval(_RAISE, *values):
                new.append(one)
        await conn.execute(_END, QUIET)
    return new


async def raise_alert(
    conn: Conn, egress: str, sender: str, site: str, category: Category, detail: str, reply: str
) -> bool:
    """Raises an alert of our own fault, or prolongs the one that is open for the same; True when it is new."""
    since = await conn.fetchval("SELECT clock_timestamp()")
    key = f"our-fault {category.label} {egress or sender} at {site} {since.isoformat()}"
    is_new = await conn.fetchval(
        _RAISE, key, egress, sender, site, int(category), detail, reply[:_REPLY_CHARS_MAX], since
    )
    return bool(is_new)


async def faults(conn: Conn, bounds: FaultBounds) -> list[Fault]:
    """What is above its bound now; the most refusals first."""
    short, long = WINDOWS_MIN
    rows = await conn.fetch(REFUSED, short, long)
    senders = await _senders(conn, {row["delivery_id"] for row in rows if row["category"] in OF_SENDER})
    by_site: _Refusals = {}
    for row in rows:
        category = Category(row["category"])
        subject = _subject(row["egress"], senders.get(row["delivery_id"], ""), row["site"], category)
        if subject is not None:
            _add(by_site, subject, category, _Refused(_Tally(row["short"], row["long"]), row["since"], row["last_at"]))
    # At one site first; what has no alert there is counted once more with its like.
    asked = {
        key: one for key, one in by_site.items() if key[0].site and one.tally.long >= bounds.of(key[1]).refusals_min
    }
    found = await _above(conn, asked, bounds)
    has_own = {(one.egress, one.sender, one.site, one.category) for one in found}
    together: _Refusals = {}
    for (subject, category), one in by_site.items():
        if (*subject, category) not in has_own:
            _add(together, subject._replace(site=""), category, one)
    sites = Counter((subject._replace(site=""), category) for subject, category in by_site)
    asked = {
        key: one for key, one in together.items() if one.tally.long >= bounds.of(key[1]).refusals_min and sites[key] > 1
    }
    found += await _above(conn, asked, bounds)
    return sorted(found, key=lambda one: -one.refused)


def _subject(egress: str, sender: str, site: str, category: Category) -> _Subject | None:
    """None: neither is known, so nobody can be told."""
    if category in OF_SENDER and sender:
        return _Subject("", sender, site)
    return _Subject(egress, "", site) if egress else None


def _add(to: _Refusals, subject: _Subject, category: Category, one: _Refused) -> None:
    have = to.get((subject, category))
    if have is not None:
        tally = have.tally.plus(*one.tally)
        one = _Refused(tally, min(have.since, one.since), max(have.last_at, one.last_at))
    to[subject, category] = one


async def _above(conn: Conn, asked: _Refusals, bounds: FaultBounds) -> list[Fault]:
    """Those whose share of the attempts is above the bound, too, in either window; the largest of them."""
    if not asked:
        return []
    attempted, deliveries = await _attempted(conn, {subject for subject, _ in asked})
    crossed = []
    for (subject, category), refused in asked.items():
        of = attempted.get(subject, _Tally())
        for minutes, count, whole in zip(WINDOWS_MIN, refused.tally, of, strict=True):
            if bounds.of(category).is_crossed(count, whole):
                crossed.append((count, max(count, whole), minutes, subject, category, refused))
                break
    crossed.sort(key=lambda one: -one[0])
    found = []
    for count, whole, minutes, subject, category, refused in crossed[:FAULTS_MAX]:
        reply = await _sample(conn, subject, category, refused.last_at, deliveries.get(subject.sender))
        found.append(Fault(*subject, category, minutes, count, whole, refused.since, reply))
    return found


async def _attempted(conn: Conn, subjects: Iterable[_Subject]) -> tuple[dict[_Subject, _Tally], dict[str, list[int]]]:
    """Attempts of each subject, all at sites or all at every site; and the deliveries of each sender."""
    wanted = set(subjects)
    sites = sorted({subject.site for subject in wanted if subject.site})
    has_senders = any(subject.sender for subject in wanted)
    short, long = WINDOWS_MIN
    if sites:
        rows = await conn.fetch(ATTEMPTED, short, long, sites)
    else:
        rows = await conn.fetch(_OF_EGRESSES, short, long)
        rows += await conn.fetch(_OF_DELIVERIES, short, long) if has_senders else []
    senders = await _senders(conn, {row["delivery_id"] for row in rows}) if has_senders else {}
    tallies: dict[_Subject, _Tally] = {}
    deliveries: dict[str, set[int]] = {}
    for row in rows:
        sender = senders.get(row["delivery_id"], "")
        if sender:
            deliveries.setdefault(sender, set()).add(row["delivery_id"])
        for subject in _both(row["egress"], sender, row["site"]):
            if subject in wanted:
                tallies[subject] = tallies.get(subject, _Tally()).plus(row["short"], row["long"])
    return tallies, {sender: sorted(ids) for sender, ids in deliveries.items()}


def _both(egress: str, sender: str, site: str) -> Iterator[_Subject]:
    if egress:
        yield _Subject(egress, "", site)
    if sender:
        yield _Subject("", sender, site)


async def _senders(conn: Conn, deliveries: Iterable[int]) -> dict[int, str]:
    """The domain in ``From`` of each delivery; those without one that can be read are left out."""
    rows = await conn.fetch(_SENDERS, sorted(set(deliveries)))
    found = {row["id"]: sender_domain_of(row["content"]) for row in rows}
    return {number: domain for number, domain in found.items() if domain}


async def _sample(
    conn: Conn, subject: _Subject, category: Category, at: datetime.datetime, deliveries: Sequence[int] | None
) -> str:
    """The last reply of that kind."""
    egress, ids, site = subject.egress or None, deliveries if subject.sender else None, subject.site or None
    row = await conn.fetchrow(_SAMPLE, at, int(category), egress, ids, site)
    if row is None:
        return ""
    said = (str(row["code"] or ""), row["enhanced"], row["reply"])
    return " ".join(part for part in said if part)[:_REPLY_CHARS_MAX]
