"""Counts from the far side what arrives, and holds it against the rules: was any limit ever exceeded?

It shares no counter with the code it judges: only the figures of the rules (`mta.traffic.limits`) and their keys. When
within its batch a message leaves is not known to the schedule; so here each batch leaves, as a die decides, either as
soon as it was handed out or just before it was reported, and no period of any length may hold more than its limit.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from mta.simulation.dice import Dice
from mta.traffic.limits import DAY_S, SECOND_S, Limits
from mta.traffic.rules import Rule, RuleSet, Scope, WarmUp, limit_key, path_key

DETAILS_MAX: Final = 20
_EVEN: Final = 1  # of a die's word


class Violation(NamedTuple):
    """A limit that was exceeded: which, when (seconds since the start), by how much."""

    key: str
    limit: str
    at_s: float
    found: int
    allowed: int


class _Tape:
    """What arrived under one ceiling in its span."""

    __slots__ = ("_entries", "_sum", "most", "name", "span_s")

    def __init__(self, name: str, span_s: int, most: int) -> None:
        self.name = name
        self.span_s = span_s
        self.most = most
        self._entries: deque[list[float]] = deque()  # [at, amount]
        self._sum = 0

    def add(self, amount: int, at_s: float) -> int:
        """How much the period of its length that ends now holds."""
        entries = self._entries
        first_s = at_s - self.span_s
        # A period is half open: what is exactly as old as it is long has left it.
        while entries and entries[0][0] <= first_s:
            self._sum -= int(entries.popleft()[1])
        if entries and entries[-1][0] == at_s:
            entries[-1][1] += amount
        else:
            entries.append([at_s, amount])
        self._sum += amount
        return self._sum

    def take_back(self, amount: int, at_s: float) -> None:
        """So many of those that were counted as of then were never begun."""
        for entry in reversed(self._entries):
            if entry[0] == at_s:
                entry[1] -= amount
                self._sum -= amount
                return
            if entry[0] < at_s:
                return


class Account:
    """All that one counter's key bounds, as the far side sees it."""

    __slots__ = ("begun", "bytes_", "connections_max", "key", "messages", "open", "opened_s", "ramp_up_s")

    def __init__(self, key: str, limits: Limits, connections_max: int | None) -> None:
        self.key = key
        self.connections_max = connections_max
        self.ramp_up_s = limits.ramp_up_s
        self.open = 0
        self.opened_s = -1.0e18
        self.messages = [_Tape(f"messages in {span} s", span, most) for span, most in limits.message_ceilings()]
        self.bytes_ = [_Tape(f"bytes in {span} s", span, most) for span, most in limits.byte_ceilings()]
        self.begun = [_Tape(f"connections begun in {span} s", span, most) for span, most in limits.opening_ceilings()]


class Docket:
    """What one kind of connection is judged by: the same for all connections of a rule, an egress and a peer.

    ``counting``: of its accounts, those that count messages or bytes. ``is_fine``: a limit of a second is among them.
    """

    __slots__ = ("accounts", "counting", "is_fine", "key", "per_connection", "quiet")

    def __init__(self, accounts: tuple[Account, ...], rule: Rule, key: str) -> None:
        self.accounts = accounts
        self.counting = tuple([account for account in accounts if account.messages or account.bytes_])
        self.per_connection = rule.messages_per_connection_max
        self.quiet = rule.quiet_hours
        self.key = key
        self.is_fine = any(tape.span_s <= SECOND_S for account in accounts for tape in account.messages)


class Judge:
    """One for all nodes together."""

    def __init__(self, rules: RuleSet, starts_unix_s: float, dice: Dice) -> None:
        self._rules = rules
        self._starts_unix_s = starts_unix_s
        self._dice = dice
        self._accounts: dict[str, Account] = {}
        self._dockets: dict[tuple[str, int, str, str, str], Docket] = {}
        self._plans: dict[str, tuple[WarmUp, tuple[int, ...], _Tape]] = {}
        self.violations = 0
        self.details: list[Violation] = []

    # --- by which rule --------------------------------------------------------------------------

    def docket(self, mx_host: str, egress_id: int, site: str, domain_class: str, peer: str) -> Docket:
        found = self._dockets.get((mx_host, egress_id, site, domain_class, peer))
        if found is None:
            rule = self._rules.match(mx_host, egress_id, site, domain_class)
            accounts = self._accounts_of(rule, egress_id, peer)
            found = Docket(accounts, rule, limit_key(rule, egress_id, peer))
            self._dockets[mx_host, egress_id, site, domain_class, peer] = found
        return found

    def _accounts_of(self, rule: Rule, egress_id: int, peer: str) -> tuple[Account, ...]:
        found = [self._account("limit " + limit_key(rule, egress_id, peer), rule, rule.connections_max)]
        if rule.connections_per_path_max is not None:
            key = "path " + path_key(rule, egress_id, peer)
            found.append(self._account(key, Limits(), rule.connections_per_path_max))
        if (provider := rule.provider) is not None:
            by = "" if provider.scope is Scope.SHARED else f"|{egress_id}"
            found.append(self._account(f"provider {provider.name}{by}", provider, provider.connections_max))
        return tuple(found)

    def _account(self, key: str, limits: Limits, connections_max: int | None) -> Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(key, limits, connections_max)
        return account

    # --- what happens ---------------------------------------------------------------------------

    def opened(self, docket: Docket, now_s: float) -> None:
        """A connection is begun."""
        for account in docket.accounts:
            if account.ramp_up_s is not None and account.open and now_s < account.opened_s + account.ramp_up_s - 1e-6:
                self._note(account.key, "ramp up", now_s, 1, 0)
            account.open += 1
            account.opened_s = now_s
            if account.connections_max is not None and account.open > account.connections_max:
                self._note(account.key, "connections open", now_s, account.open, account.connections_max)
            for tape in account.begun:
                self._check(account, tape, tape.add(1, now_s), now_s, 0)

    def closed(self, docket: Docket) -> None:
        for account in docket.accounts:
            account.open -= 1

    def handed(self, docket: Docket, messages: int, used: int, size_bytes: int, now_s: float) -> bool:
        """A batch is handed out. True: it leaves at once, by the die; else when it is reported."""
        if docket.per_connection is not None and used > docket.per_connection:
            self._note(docket.key, "messages on a connection", now_s, used, docket.per_connection)
        if docket.quiet is not None and docket.quiet.ends_at(now_s + self._starts_unix_s) > now_s + self._starts_unix_s:
            self._note(docket.key, "quiet hours", now_s, messages, 0)
        if not docket.counting or not self._dice.word() & _EVEN:
            return False
        self._arrived(docket, messages, size_bytes, now_s)
        return True

    def reported(
        self,
        docket: Docket,
        attempted: int,
        returned: int,
        size_bytes: int,
        handed_s: float,
        now_s: float,
        *,
        left: bool,
    ) -> None:
        """``left``: what `handed` said of it."""
        if not docket.counting:
            return
        if not left:
            self._arrived(docket, attempted, size_bytes, now_s)
        elif returned:
            for account in docket.counting:
                for tape in account.messages:
                    tape.take_back(returned, handed_s)
                for tape in account.bytes_:
                    tape.take_back(returned * size_bytes, handed_s)

    def _arrived(self, docket: Docket, messages: int, size_bytes: int, now_s: float) -> None:
        if not messages:
            return
        for account in docket.counting:
            for tape in account.messages:
                self._check(account, tape, tape.add(messages, now_s), now_s, 0)
            for tape in account.bytes_:
                self._check(account, tape, tape.add(messages * size_bytes, now_s), now_s, size_bytes)

    def _check(self, account: Account, tape: _Tape, found: int, now_s: float, one: int) -> None:
        """``one``: what a single message has; one that is larger than all of the limit may go alone."""
        if found > max(tape.most, one):
            self._note(account.key, tape.name, now_s, found, tape.most)

    def _note(self, key: str, limit: str, at_s: float, found: int, allowed: int) -> None:
        self.violations += 1
        if len(self.details) < DETAILS_MAX:
            self.details.append(Violation(key, limit, round(at_s, 3), found, allowed))

    # --- warm-up plans --------------------------------------------------------------------------

    def warmed(self, egress_id: int, ladder: str, messages: int, now_s: float) -> None:
        """Messages of an address that has a plan, while another could have carried them; ``ladder`` is its name."""
        plan = self._rules.warm_up(egress_id)
        if plan is None:
            return
        key = f"warm-up {plan.name}|{egress_id}|{ladder}"
        found = self._plans.get(key)
        if found is None:
            steps = dict(plan.ladders).get(ladder, ())
            found = self._plans[key] = (plan, steps, _Tape("messages in a day", DAY_S, 0))
        _, steps, tape = found
        in_a_day = tape.add(messages, now_s)
        day = max(0, int((now_s + self._starts_unix_s - plan.starts_unix_s) // DAY_S))
        if day < len(steps) and in_a_day > steps[day]:
            self._note(key, tape.name, now_s, in_a_day, steps[day])
