"""What is played: who the recipients are, where their mail goes, how the far end answers, which rules hold.

Everything here follows from the options alone, so that the account at the end knows what had to happen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from mta.model.errors import BadInput
from mta.model.limits import automatic_part_recipients
from mta.queue.part import Part, Row

RECIPIENTS_MAX: Final = 5_000_000
DOMAINS_MAX: Final = 100_000
CHILDREN_MAX: Final = 64

BIG_SHARE: Final = 0.4  # of the domains with one large provider, as in real lists
STRICT_SHARE: Final = 0.05  # of the domains with a provider that is slow and counts our connections
SMALL_HOSTS_MAX: Final = 8
STRICT_RECIPIENTS_MAX: Final = 400  # it takes some 100 a second: a demo has to end
STRICT_DELAY_MS: Final = 20
STRICT_CONNECTIONS_MAX: Final = 2
STRICT_MESSAGES_PER_CONNECTION_MAX: Final = 20
NOWHERE_RECIPIENTS_MAX: Final = 100
EVERY: Final = 50  # of so many recipients one is of each of these kinds
GONE: Final = "gone"  # has left, and its server says so
FULL: Final = "full"  # has a full mailbox, now and then
LEFT: Final = "left"  # has left, and its server takes the message and sends it back
ANGRY: Final = "angry"  # calls it spam
AWAY: Final = "away"  # answers that it is not there
_KINDS: Final = {49: GONE, 24: FULL, 12: LEFT, 37: ANGRY, 5: AWAY}  # by the number's place among so many
FULL_SHARE: Final = 0.3  # of attempts at a full mailbox are refused; somebody is clearing it up
GREYLISTED_SHARE: Final = 0.03  # of all attempts are answered "not now"
NOWHERE_DOMAIN: Final = "nowhere.example"

SENDER_DOMAIN: Final = "shop.example"

FIELDS: Final = ("first_name", "city", "voucher")
_NAMES: Final = (
    "Ann",
    "Łukasz",
    "Zoë",
    "Bilal",
    "Chloé",
    "Jürgen",
    "Mei",
    "Siobhán",
    "Tomás",
    "Yuki",
    "Ingrid",
    "Omar",
)
_CITIES: Final = ("Lyon", "Kraków", "Gent", "Málaga", "Århus", "Graz", "Turku")

CONTENT: Final = msgspec.json.encode(
    {
        "sender": '"Demo Shop" <news@shop.example>',
        "to_name": "{{first_name}}",
        "subject": "{{first_name}}, your voucher {{voucher}} is waiting",
        "text": (
            "Hello {{first_name}},\n\nyour voucher {{voucher}} is good in every shop in {{city}}:\n"
            "https://shop.example/v/{{voucher|url}}?city={{city|url}}\n\nYour Demo Shop\n"
        ),
        "html": (
            "<html><body><h1>Hello {{first_name}}</h1>\n"
            '<p>Your voucher <b>{{voucher}}</b> is good in <a href="https://shop.example/v/{{voucher|url}}'
            '?city={{city|url}}">every shop in {{city}}</a>.</p>\n<p>Your Demo Shop</p></body></html>\n'
        ),
        "headers": {"List-Unsubscribe": "<https://shop.example/leave?who={{reference|url}}>"},
    }
)
# Half a second would do for loopback; real schedules wait for an hour and more.
RETRY: Final = '{"first_count": 1000, "first_period_s": 1, "then_period_s": 1, "greylist_s": 1, "jitter": 0}'

RULES: Final = f"""\
[[rule]]
name = "strict"
mx = "mx.strict.example"
scope = "shared"
connections_max = {STRICT_CONNECTIONS_MAX}
messages_per_connection_max = {STRICT_MESSAGES_PER_CONNECTION_MAX}

[[rule]]
name = "everybody"
mx = "*"
scope = "path"
connections_max = 10
messages_per_connection_max = 500
"""

SINK_SCRIPT: Final = f"""\
local_parts = false

[[rule]]
step = "rcpt"
recipient = "gone.*"
code = 550
text = "5.1.1 no such user"

[[rule]]
step = "rcpt"
recipient = "full.*"
odds = {FULL_SHARE}
code = 552
text = "5.2.2 mailbox full"

[[rule]]
step = "rcpt"
odds = {GREYLISTED_SHARE}
code = 450
text = "4.2.1 greylisted, try again later"

[[rule]]
step = "dot"
recipient = "*@strict-*"
delay_ms = {STRICT_DELAY_MS}
"""


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a newcomer may choose. ``kill``: one child, and later the master, are killed on the way."""

    recipients: int = 20_000
    domains: int = 100
    children: int = 2
    kill: bool = False


def check_options(options: DemoOptions) -> None:
    """BadInput names the option."""
    for name, value, most in (
        ("--recipients", options.recipients, RECIPIENTS_MAX),
        ("--domains", options.domains, DOMAINS_MAX),
        ("--children", options.children, CHILDREN_MAX),
    ):
        if not 1 <= value <= most:
            raise BadInput(name, f"is {value:,}, allowed are 1 to {most:,}")


class Host(msgspec.Struct, frozen=True):
    """One MX host, which is one site here: all domains that it serves share one queue and one set of limits."""

    name: str
    address: str  # of its own, so that the sink's record tells hosts apart
    rule: str
    domains: list[str]


class Scene:
    """Hosts, domains and recipients of one demo."""

    def __init__(self, options: DemoOptions) -> None:
        self.options = options
        domains = options.domains
        strict = max(1, int(domains * STRICT_SHARE)) if domains >= 3 else 0
        big = int(domains * BIG_SHARE)
        small = domains - strict - big
        small_hosts = min(SMALL_HOSTS_MAX, small)
        groups = [("mx.bigmail.example", "everybody", [f"bigmail-{n}.example" for n in range(big)])]
        groups.append(("mx.strict.example", "strict", [f"strict-{n}.example" for n in range(strict)]))
        groups += [
            (f"mx.host-{k}.example", "everybody", [f"company-{n}.example" for n in range(k, small, small_hosts)])
            for k in range(small_hosts)
        ]
        self.hosts = [
            Host(name, f"127.0.0.{number}", rule, names)
            for number, (name, rule, names) in enumerate((group for group in groups if group[2]), start=2)
        ]
        self.strict = next((host for host in self.hosts if host.rule == "strict"), None)
        self._strict_recipients = min(STRICT_RECIPIENTS_MAX, options.recipients // 20) if self.strict else 0
        self._nowhere_recipients = min(NOWHERE_RECIPIENTS_MAX, options.recipients // 200)

    def zones(self) -> dict[str, dict[str, object]]:
        """For the name server: each domain's MX, each host's address. Anything else does not exist."""
        zones: dict[str, dict[str, object]] = {host.name: {"A": [host.address]} for host in self.hosts}
        for host in self.hosts:
            zones.update({domain: {"MX": [(10, host.name)]} for domain in host.domains})
        return zones

    def recipients(self) -> Iterator[Row]:
        """(address, reference, merge values), each address once."""
        fast = [domain for host in self.hosts if host is not self.strict for domain in host.domains]
        for i in range(self.options.recipients):
            name = _NAMES[i % len(_NAMES)]
            word = _KINDS.get(i % EVERY, "user")
            address = f"{word}.{i}@{self._domain(i, fast)}"
            yield address, f"customer {i}", [name, _CITIES[i % len(_CITIES)], f"V-{i:06d}"]

    def _domain(self, i: int, fast: list[str]) -> str:
        # (i * k) % n < k holds for k of the n recipients, evenly spread.
        total = self.options.recipients
        if (i * self._nowhere_recipients + total // 2) % total < self._nowhere_recipients:
            return NOWHERE_DOMAIN
        if self.strict is not None and i * self._strict_recipients % total < self._strict_recipients:
            return self.strict.domains[i % len(self.strict.domains)]
        return fast[i % len(fast)]

    def parts(self) -> Iterator[Part]:
        """The recipients in parts of the automatic size."""
        size = automatic_part_recipients(self.options.recipients)
        rows: list[Row] = []
        for row in self.recipients():
            rows.append(row)
            if len(rows) == size:
                yield Part(f"demo:{row[1]}", FIELDS, rows)
                rows = []
        if rows:
            yield Part("demo:rest", FIELDS, rows)

    def host_of(self) -> dict[str, Host]:
        """Hosts by the address that the sink knows them by."""
        return {host.address: host for host in self.hosts}
