"""A node in the modelled world: the real `Schedule`, and connections to modelled providers that do what it says.

It performs decisions as `mta.master.dispatch` and the children do, by the batch: one event for a batch of messages,
whatever its length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from mta.simulation.backlog import Errand, Part, Place
from mta.simulation.books import Agenda, Books
from mta.simulation.dice import Dice
from mta.simulation.judge import Docket, Judge
from mta.simulation.provider import Account, Fate, Provider
from mta.simulation.reactions import Reactions
from mta.traffic.actions import Bounds, CloseSession, GiveBack, HandOut, OpenSession
from mta.traffic.effects import Effect
from mta.traffic.lanes import Lane
from mta.traffic.ready import Run, Stream, Taken
from mta.traffic.retry import RetrySchedule
from mta.traffic.rules import RuleSet
from mta.traffic.schedule import Schedule
from mta.traffic.sessions import Session

# Kinds of events of connections; those of the world begin at `mta.simulation.engine`.
OPENED: Final = 0
DONE: Final = 1
IDLE: Final = 2
GONE: Final = 3

CLOCK_START_S: Final = 1_000.0  # of the schedule's clock: any but 0, which its backoff takes for "never"
QUIT_S: Final = 0.02  # until a connection that is to end has ended
TURNS_MAX: Final = 100_000
PART_RECIPIENTS: Final = 256
GREETING: Final = "GREETING"
MAIL: Final = "MAIL"
RCPT: Final = "RCPT"
FINE_S: Final = 0.02  # as often as reports come, about


class Batch:
    """What a connection was given at a time."""

    __slots__ = ("amount", "handed_s", "is_early", "lane", "retry", "stream", "taken")

    def __init__(self, action: HandOut[Part], taken: Taken[Part], retry: RetrySchedule | None, handed_s: float) -> None:
        self.lane = action.lane
        self.stream = action.stream
        self.taken = taken
        self.amount = 0
        for _, positions in taken:
            self.amount += len(positions)
        self.retry = retry
        self.handed_s = handed_s
        self.is_early = False  # for the judge: it leaves at once


class Connection:
    """A session as its child and the provider see it."""

    __slots__ = (
        "account",
        "docket",
        "idle_s",
        "idle_since_s",
        "is_busy",
        "is_closing",
        "is_known",
        "is_open",
        "is_over",
        "is_watched",
        "ladder",
        "node",
        "opened_s",
        "provider",
        "queue",
        "session",
        "session_s",
        "used",
    )

    def __init__(self, node: Node, session: Session, place: Place, account: Account, docket: Docket) -> None:
        self.node = node
        self.session = session
        self.provider: Provider = place.provider
        self.account = account
        self.docket = docket
        timeouts = session.hop.rule.timeouts
        self.idle_s: float = timeouts.idle_s
        self.session_s: float = timeouts.session_s
        self.ladder = ""  # of the warm-up plan that holds for it
        self.queue: deque[Batch] = deque()
        self.is_open = False
        self.is_known = False  # to the provider
        self.is_busy = False
        self.is_closing = False
        self.is_over = False
        self.is_watched = False  # an event will look whether it is idle
        self.opened_s = 0.0
        self.idle_since_s = 0.0
        self.used = 0


class Node:
    """One of the world. ``places``: by the key of their site."""

    def __init__(
        self,
        name: str,
        rules: RuleSet,
        bounds: Bounds,
        children: int,
        places: dict[str, Place],
        agenda: Agenda,
        books: Books,
        judge: Judge,
        reactions: Reactions,
        starts_unix_s: float,
        dice: Dice,
    ) -> None:
        self.name = name
        self._rules = rules
        self._places = places
        self._agenda = agenda
        self._books = books
        self._judge = judge
        self._reactions = reactions
        self.unix_offset_s = starts_unix_s - CLOCK_START_S
        self.schedule: Schedule[Part] = Schedule(rules, bounds, unix_offset_s=self.unix_offset_s, shuffle=dice.shuffle)
        for child in range(1, children + 1):
            self.schedule.add_child(child)
        self._connections: dict[int, Connection] = {}
        self._retries: dict[int, RetrySchedule] = {}  # session -> that of its rule
        self._zeros: list[int] = [0] * PART_RECIPIENTS
        self._ready_max = bounds.ready_max
        self.out = 0  # messages that connections have
        self.is_touched = False

    @property
    def clock_s(self) -> float:
        return self._agenda.now_s + CLOCK_START_S

    @property
    def room(self) -> int:
        """For so many more recipients there is memory."""
        return self._ready_max - self.schedule.ready_count - self.out

    @property
    def next_due_s(self) -> float:
        return self.schedule.next_due_s() - CLOCK_START_S

    # --- recipients -----------------------------------------------------------------------------

    def put(self, errand: Errand, place: Place, attempt: int, first_s: float, messages: int) -> None:
        """Recipients that were claimed."""
        now_s = self._agenda.now_s
        held_until_s = self._reactions.held_until_s(errand)
        if held_until_s > now_s:
            self._books.held(Part(errand, place, attempt, first_s), messages, held_until_s, now_s)
            return
        domain_class = self.schedule.domain_class(place.domain)
        chooser = self._reactions.chooser(errand.chooser, place.site, domain_class)
        lane = self.schedule.lane(place.site, chooser, place.domain)
        stream = errand.stream
        # As parts come: what is given back of them goes by the part, each with a time of its own.
        for begin in range(0, messages, PART_RECIPIENTS):
            part = Part(errand, place, attempt, first_s)
            self._put(lane, stream, part, min(PART_RECIPIENTS, messages - begin))

    def _put(self, lane: Lane[Part], stream: Stream, part: Part, messages: int) -> None:
        if part.errand.is_over:
            self._books.expired(part.errand, part.place, messages, self._agenda.now_s)
            return
        # Positions in a part mean nothing here: any list of that length does.
        self.schedule.put(lane, stream, part.errand.weight, Run(part, self._zeros[:messages]), self.clock_s)
        self.is_touched = True

    def end(self, errand: Errand) -> None:
        """The validity is over: what is in memory expires; what is out has its outcome yet."""
        for part, positions in list(self.schedule.remove_delivery(errand.id)):
            self._books.expired(errand, part.place, len(positions), self._agenda.now_s)

    # --- what the schedule decides --------------------------------------------------------------

    def pump(self) -> None:
        """Until there is nothing to decide at this moment."""
        self.is_touched = False
        for _ in range(TURNS_MAX):
            for action in self.schedule.hand_out(self.clock_s):
                if isinstance(action, HandOut):
                    self._hand_out(action)
                elif isinstance(action, OpenSession):
                    self._open(action.session)
                elif isinstance(action, CloseSession):
                    self._close(action.session)
                else:
                    self._give_back(action)
            if not self.schedule.has_runnable:
                return
        raise AssertionError("the schedule finds something to do for ever")

    def _open(self, session: Session) -> None:
        agenda, hop, group = self._agenda, session.hop, session.group
        place = self._places[group.site.key]
        docket = self._judge.docket(hop.mx_host, group.egress.id, group.site.key, group.domain_class, hop.peer)
        account = place.provider.account(group.egress.id, group.site.key)
        connection = Connection(self, session, place, account, docket)
        for limit in hop.limits:
            if limit.is_plan:
                connection.ladder = limit.key.rpartition("|")[2]
        self._connections[session.id] = connection
        if hop.rule.retry is not None:
            self._retries[session.id] = hop.rule.retry
        self._judge.opened(docket, agenda.now_s)
        takes_s = place.provider.connect_takes_s(agenda.now_s, hop.rule.timeouts.connect_s)
        agenda.at(agenda.now_s + takes_s, OPENED, connection)

    def _hand_out(self, action: HandOut[Part]) -> None:
        session = action.session
        connection = self._connections[session.id]
        errand = action.taken[0][0].errand
        retry = self._retries.get(session.id)
        self.out += action.amount
        size_bytes = errand.message_bytes
        for taken in [action.taken] if not connection.docket.is_fine else self._pieces(connection, action.taken):
            batch = Batch(action, taken, retry, self._agenda.now_s)
            connection.used += batch.amount
            batch.is_early = self._judge.handed(
                connection.docket, batch.amount, connection.used, size_bytes, self._agenda.now_s
            )
            connection.queue.append(batch)
        if connection.is_open and not connection.is_busy:
            self._begin(connection)

    @staticmethod
    def _pieces(connection: Connection, taken: Taken[Part]) -> list[Taken[Part]]:
        """Where a limit of a second counts, it matters when in a batch each message goes: so it is told in pieces."""
        most = max(1, int(FINE_S / connection.provider.model.message_s))
        return [
            [(part, positions[begin : begin + most])]
            for part, positions in taken
            for begin in range(0, len(positions), most)
        ]

    def _close(self, session: Session) -> None:
        connection = self._connections.get(session.id)
        if connection is not None and not connection.is_closing:
            connection.is_closing = True
            if connection.is_open and not connection.is_busy and not connection.queue:
                self._agenda.at(self._agenda.now_s + QUIT_S, GONE, connection)

    def _give_back(self, action: GiveBack[Part]) -> None:
        part, messages = action.part, len(action.positions)
        now_s = self._agenda.now_s
        if action.is_attempt:
            self._books.unreachable(part, messages, now_s)
        else:
            self._books.surplus(part, messages, action.due_in_s, now_s)

    # --- what happens to connections ------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """It is known whether the connection is there."""
        if connection.is_over:
            return
        cause = connection.provider.connect(connection.account, self._agenda.now_s)
        if cause:
            self._replied(connection, None, cause.partition(": ")[2], 1, GREETING)
            self._lose(connection, cause)
            return
        connection.is_known = connection.is_open = True
        connection.opened_s = self._agenda.now_s
        self.schedule.session_opened(connection.session.id, self.clock_s)
        self.is_touched = True
        if connection.queue:
            self._begin(connection)
        elif connection.is_closing:
            self._agenda.at(self._agenda.now_s + QUIT_S, GONE, connection)
        else:
            self._rest(connection)

    def _begin(self, connection: Connection) -> None:
        """The next batch is under way."""
        now_s = self._agenda.now_s
        if now_s - connection.opened_s >= connection.session_s:
            self._lose(connection, "")
            return
        connection.is_busy = True
        self._agenda.at(now_s + connection.provider.batch_takes_s(connection.queue[0].amount), DONE, connection)

    def done(self, connection: Connection) -> None:
        """The batch under way is over."""
        if connection.is_over:
            return
        connection.is_busy = False
        batch = connection.queue.popleft()
        ends = self._decide(connection, batch)
        if ends:
            self._lose(connection, ends)
        elif connection.queue:
            self._begin(connection)
        elif connection.is_closing:
            self._agenda.at(self._agenda.now_s + QUIT_S, GONE, connection)
        else:
            self._rest(connection)

    def _decide(self, connection: Connection, batch: Batch) -> str:
        """Outcomes of a batch; the cause when the provider ended the connection."""
        now_s = self._agenda.now_s
        used = connection.used - batch.amount
        for other in connection.queue:
            used -= other.amount
        attempted = 0
        ends = ""
        back: list[tuple[Part, int]] = []
        for part, positions in batch.taken:
            messages = len(positions)
            if ends:
                back.append((part, messages))
                continue
            waited_s = now_s - part.first_s if part.first_s >= 0.0 else -1.0
            fate = connection.provider.take(connection.account, messages, used, waited_s, now_s)
            ends = fate.ends
            begun = messages - fate.returned
            used += begun
            attempted += begun
            if begun:
                self._account(connection, part, fate, begun, batch)
            if fate.returned:
                back.append((part, fate.returned))
        self._report(connection, batch, attempted, now_s)
        if ends:
            self._replied(connection, None, ends.partition(": ")[2], 1, MAIL)
        for part, messages in back:
            self._put(batch.lane, batch.stream, part, messages)
        return ends

    def _account(self, connection: Connection, part: Part, fate: Fate, begun: int, batch: Batch) -> None:
        now_s = self._agenda.now_s
        books = self._books
        books.attempted(part, begun, now_s)
        if fate.delivered:
            books.delivered(part, fate.delivered, now_s)
        part.place.row.refused += fate.refused
        for reply, messages in fate.failed:
            books.failed(part, messages, now_s)
            self._replied(connection, part, reply, messages, RCPT)
        for reply, messages in fate.deferred:
            retry = part.errand.model.retry if batch.retry is None else batch.retry
            books.deferred(part, messages, retry, now_s, is_put_off=reply.startswith("4"))
            self._replied(connection, part, reply, messages, RCPT)
        # As the collector counts: the first 4yz that a recipient meets is no error of its domain.
        excused = 0
        if part.attempt <= 1:
            excused = sum([messages for reply, messages in fate.deferred if reply.startswith("4")])
        if begun > excused:
            domain = part.errand.model.domain or part.place.domain
            self._reactions.attempted(domain, begun - excused, fate.delivered)

    def _report(self, connection: Connection, batch: Batch, attempted: int, now_s: float) -> None:
        """As the collector does."""
        errand = batch.taken[0][0].errand
        size_bytes = errand.message_bytes
        returned = batch.amount - attempted
        self.out -= batch.amount
        connection.used -= returned
        clock_s = now_s + CLOCK_START_S
        if attempted:
            self.schedule.sent(batch.lane, attempted, clock_s)
            self.schedule.sizes_bytes[errand.id] = size_bytes
        self.schedule.decided(connection.session.id, attempted, returned, clock_s, attempted * size_bytes)
        self._judge.reported(
            connection.docket, attempted, returned, size_bytes, batch.handed_s, now_s, left=batch.is_early
        )
        if connection.ladder and attempted and self._has_warm(batch.lane):
            self._judge.warmed(connection.session.group.egress.id, connection.ladder, attempted, now_s)
        self.is_touched = True

    def _has_warm(self, lane: Lane[Part]) -> bool:
        return any(self._rules.warm_up(egress.id) is None for egress in lane.egresses)

    def _rest(self, connection: Connection) -> None:
        """It has nothing to do: after a time its child ends it."""
        connection.idle_since_s = self._agenda.now_s
        if not connection.is_watched:
            connection.is_watched = True
            self._agenda.at(self._agenda.now_s + connection.idle_s, IDLE, connection)

    def idle(self, connection: Connection) -> None:
        connection.is_watched = False
        if connection.is_over or connection.is_closing or connection.queue:
            return
        ends_s = connection.idle_since_s + connection.idle_s
        if ends_s <= self._agenda.now_s + 1e-9:
            self._lose(connection, "")
        else:
            connection.is_watched = True
            self._agenda.at(ends_s, IDLE, connection)

    def gone(self, connection: Connection) -> None:
        """It was told to end, and has."""
        if not connection.is_over:
            self._lose(connection, "")

    def _lose(self, connection: Connection, failure: str) -> None:
        """The connection is over; what it had and did not begin comes back."""
        connection.is_over = True
        connection.is_open = False
        now_s = self._agenda.now_s
        if connection.is_known:
            connection.provider.closed(connection.account)
        del self._connections[connection.session.id]
        self._retries.pop(connection.session.id, None)
        for batch in connection.queue:
            self._report(connection, batch, 0, now_s)
            for part, positions in batch.taken:
                self._put(batch.lane, batch.stream, part, len(positions))
        connection.queue.clear()
        self._judge.closed(connection.docket)
        self.schedule.session_closed(connection.session.id, self.clock_s, failure)
        self.is_touched = True

    def _replied(self, connection: Connection, part: Part | None, reply: str, messages: int, stage: str) -> None:
        if reply:
            session, now_s = connection.session, self._agenda.now_s
            domain = "" if part is None else part.errand.model.domain or part.place.domain
            errand = None if part is None else part.errand
            self._reactions.replied(session, domain, errand, reply, messages, stage, now_s)

    # --- what is in force besides the rules -----------------------------------------------------

    def obey(self, effects: Sequence[Effect]) -> None:
        """From now on."""
        self.schedule.set_effects(effects, self.clock_s)
        self.is_touched = True

    def hold(self, errand: Errand, until_s: float) -> None:
        """Nothing more of it is begun before that time: what waits here goes back to the queue."""
        now_s = self._agenda.now_s
        for part, positions in list(self.schedule.remove_delivery(errand.id)):
            self._books.held(part, len(positions), max(until_s, now_s), now_s)

    def take_in_anew(self, sites: frozenset[str]) -> None:
        """What waits here for these sites leaves from another pool now: it is claimed once more."""
        now_s = self._agenda.now_s
        for lane in list(self.schedule.lanes):
            if lane.site.key in sites:
                for _, part, positions in list(lane.ready.shed(lane.ready.count)):
                    self.schedule.ready_count -= len(positions)
                    self._books.surplus(part, len(positions), 0.0, now_s)
