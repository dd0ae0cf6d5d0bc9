"""Which tests show that compiled modules do as their sources say: `make test` runs these once more, not compiled.

A module of setup.py's list without an entry here, or an entry without its module, is an error of
tests/pure/test_compiled.py. Printed by ``python -m tests.support.hot_tests`` for the Makefile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
# Property tests of what is not compiled (the ledger of shared limits, say) would show the same twice.
_NOT_HOT: Final = {"adaptation", "qualify", "shared_limits", "waves"}
_DIALOGUE: Final = ("pure/test_dialogue", "property/test_dialogue_verdicts", "process/test_dialogue_scripts")
_MESSAGE: Final = ("pure/test_render", "property/test_render_any_values")
_SCHEDULE: Final = ("pure/test_schedule", "property/test_schedule", "pure/test_schedule_limits")
_SIMULATION: Final = ("pure/test_simulation",)
_LOOK_UPS: Final = ("process/test_resolver", "process/test_dns_tcp")
_MACHINE: Final = ("pure/test_machine_fault", "property/test_schedule")
_FAULTS: Final = ("pure/test_child_faults", "property/test_random_servers")
_DAEMON: Final = ("process/test_daemon", "process/test_failures")

# Property and failure tests first of all: they go where the everyday does not.
EXERCISED_BY: Final[dict[str, tuple[str, ...]]] = {
    "mta/smtp/envelope.py": _DIALOGUE,
    "mta/smtp/commands.py": _DIALOGUE,
    "mta/smtp/reply.py": ("pure/test_reply", "property/test_reply_parser"),
    "mta/smtp/transaction.py": _DIALOGUE,
    "mta/smtp/transparency.py": ("property/test_transparency",),
    "mta/smtp/dialogue.py": _DIALOGUE,
    "mta/smtp/order.py": ("pure/test_dialogue_order", *_DIALOGUE),
    "mta/smtp/session_limits.py": _DIALOGUE,
    "mta/smtp/send_cursor.py": (*_DIALOGUE, "property/test_random_servers"),
    "mta/message/dkim.py": ("pure/test_dkim", "property/test_signatures"),
    "mta/message/headers.py": _MESSAGE,
    "mta/message/layout.py": ("pure/test_layout",),
    "mta/message/render.py": _MESSAGE,
    "mta/message/signing.py": ("property/test_signatures",),
    "mta/message/values.py": _MESSAGE,
    "mta/message/verp.py": _MESSAGE,
    "mta/failure/triage.py": ("pure/test_triage",),
    "mta/traffic/egress.py": ("pure/test_egress_choice",),
    "mta/traffic/alarms.py": ("pure/test_alarms",),
    "mta/traffic/backoff.py": ("pure/test_backoff",),
    "mta/traffic/quota.py": ("pure/test_quota", "property/test_quota_windows"),
    "mta/traffic/fair.py": ("pure/test_fair", "property/test_fair_shares"),
    "mta/traffic/line.py": ("pure/test_line",),
    "mta/traffic/gates.py": ("pure/test_gates",),
    "mta/traffic/limit.py": _SCHEDULE,
    "mta/traffic/path.py": _SCHEDULE,
    "mta/traffic/sources.py": _MACHINE,
    "mta/traffic/capacity.py": _MACHINE,
    "mta/traffic/machine_rests.py": _MACHINE,
    "mta/traffic/counters.py": ("pure/test_counters", *_SCHEDULE),
    "mta/traffic/sessions.py": ("pure/test_sessions", *_SCHEDULE),
    "mta/traffic/reach.py": ("pure/test_reach", *_SCHEDULE),
    "mta/traffic/waits.py": _SCHEDULE,
    "mta/traffic/host_sessions.py": ("pure/test_schedule_hosts", *_SCHEDULE),
    "mta/traffic/refusals.py": ("pure/test_path_refusals", *_SCHEDULE),
    "mta/traffic/ready.py": ("pure/test_ready",),
    "mta/traffic/lanes.py": _SCHEDULE,
    "mta/traffic/surplus.py": _SCHEDULE,
    "mta/traffic/actions.py": _SCHEDULE,
    "mta/traffic/session_table.py": (*_SCHEDULE, "pure/test_schedule_reload"),
    "mta/traffic/connections.py": _SCHEDULE,
    "mta/traffic/schedule.py": (*_SCHEDULE, "pure/test_schedule_events", "pure/test_schedule_reload"),
    "mta/simulation/dice.py": _SIMULATION,
    "mta/simulation/books.py": _SIMULATION,
    "mta/simulation/backlog.py": _SIMULATION,
    "mta/simulation/tally.py": _SIMULATION,
    "mta/simulation/provider.py": _SIMULATION,
    "mta/simulation/reactions.py": _SIMULATION,
    "mta/simulation/judge.py": _SIMULATION,
    "mta/simulation/node.py": _SIMULATION,
    "mta/simulation/engine.py": _SIMULATION,
    "mta/dns/cache.py": _LOOK_UPS,
    "mta/dns/message.py": ("property/test_dns_packets",),
    "mta/dns/transport.py": _LOOK_UPS,
    "mta/outcomes/line.py": ("store/test_log_line",),
    "mta/session/link.py": ("process/test_link",),
    "mta/child/carrier.py": (*_FAULTS, *_DAEMON),
    "mta/child/session_watch.py": ("pure/test_session_watch", *_FAULTS),
    "mta/child/letters.py": _DAEMON,
    "mta/child/tally.py": _DAEMON,
    "mta/child/worker.py": (*_FAULTS, *_DAEMON),
    "mta/master/collector.py": _DAEMON,
    "mta/master/dispatch.py": (*_DAEMON, "process/test_daemon_routes"),
}


def hot_tests() -> list[str]:
    """Files, as named from the root: those of the table, and every property test that may touch the hot path."""
    named = {f"tests/{name}.py" for names in EXERCISED_BY.values() for name in names}
    properties = (ROOT / "tests/property").glob("test_*.py")
    named |= {f"tests/property/{path.name}" for path in properties if path.stem.removeprefix("test_") not in _NOT_HOT}
    return sorted(named)


if __name__ == "__main__":
    print(*hot_tests())
