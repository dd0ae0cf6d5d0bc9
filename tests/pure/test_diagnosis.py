"""Causes of slowness: the provoked one is named first, whatever else is also true."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mta.model.waiting import WaitReason
from mta.traffic.diagnosis import CauseKind, Facts, NodeFacts, SiteRefusals, Suspension, Waiting, diagnose

NODE = NodeFacts(
    hold="",
    children_wanted=2,
    children_working=2,
    database_trouble="",
    settlement_s=0.01,
    claim_s=0.01,
    is_memory_full=False,
    reason="",
    detail="",
    waiting=(Waiting("window", "mx.test", 800),),
    out=50,
    asked=0,
    message_s=0.02,
    open_s=0.01,
)
FACTS = Facts(
    state="running",
    starts_in_s=0.0,
    recipients=1000,
    ended=100,
    due=0,
    leased=900,
    deferred=0,
    surplus=0,
    later_waves=0,
    held=0,
    attempts=100,
    refused=0,
    unreachable=0,
    unrouted=0,
    mean_bytes=4_000.0,
    sites=(),
    nodes_living=1,
    node=NODE,
)


def first(node: dict[str, Any] | None = None, **facts: Any) -> CauseKind:

    of_node = msgspec.structs.replace(NODE, **(node or {}))
    return diagnose(msgspec.structs.replace(FACTS, node=of_node, **facts))[0].kind


def waits(reason: WaitReason, recipients: int = 850) -> dict[str, Any]:
    return {"waiting": (Waiting(reason.value, "mx.test", recipients),), "out": 0}


def test_nothing_holds_up_what_goes_at_full_speed() -> None:
    assert first() is CauseKind.NONE


@pytest.mark.parametrize(
    ("cause", "node", "facts"),
    [
        (CauseKind.STATE, {}, {"state": "paused"}),
        (CauseKind.STATE, {}, {"starts_in_s": 60.0}),
        (CauseKind.LEASE, {"hold": "lease", "database_trouble": "away"}, {}),
        (CauseKind.JOURNAL, {"hold": "journal"}, {}),
        (CauseKind.DATABASE, {"settlement_s": 4.0}, {}),
        (CauseKind.DATABASE, {"claim_s": 4.0}, {}),
        (CauseKind.DATABASE, {"database_trouble": "refused"}, {}),
        (CauseKind.NO_CHILD, {"children_working": 0}, {}),
        (CauseKind.NO_CHILD, {"children_working": 1}, {}),
        (
            CauseKind.EGRESS,
            {"reason": "no-egress", "detail": "pool x", "waiting": (), "out": 0},
            {"leased": 0, "due": 900},
        ),
        (CauseKind.EGRESS, waits(WaitReason.SUSPENDED), {}),
        (CauseKind.EGRESS, waits(WaitReason.NO_EGRESS), {}),
        (CauseKind.MACHINE, waits(WaitReason.MACHINE), {}),
        (CauseKind.MACHINE, {"reason": "machine", "waiting": (), "out": 0}, {"leased": 0, "due": 900}),
        (CauseKind.SIGNING, {"reason": "no-signing-key", "waiting": (), "out": 0}, {"leased": 0, "due": 900}),
        (CauseKind.DUPLICATES, {"waiting": (), "out": 0}, {"leased": 0, "unchecked": 900}),
        (CauseKind.RULE, waits(WaitReason.RULE_MESSAGES_PER_HOUR), {}),
        (CauseKind.RULE, waits(WaitReason.RULE_MESSAGES_PER_HOUR, 50), {"surplus": 800, "leased": 50}),
        (CauseKind.RULE, waits(WaitReason.RULE_BYTES), {"mean_bytes": 90_000.0}),
        (CauseKind.RULE, waits(WaitReason.RULE_CONNECTIONS), {}),
        (CauseKind.RULE, waits(WaitReason.QUIET_HOURS), {}),
        (CauseKind.RULE, waits(WaitReason.SHARE), {}),
        (CauseKind.SIZE, waits(WaitReason.RULE_CONNECTIONS), {"mean_bytes": 90_000.0}),
        (CauseKind.SIZE, {"message_s": 0.6}, {"mean_bytes": 90_000.0}),
        (CauseKind.RECEIVER, {"message_s": 1.0}, {}),
        (CauseKind.RECEIVER, {"open_s": 5.0}, {}),
        (CauseKind.RECEIVER, {**waits(WaitReason.RULE_CONNECTIONS), "message_s": 1.0}, {}),
        (CauseKind.SESSIONS, waits(WaitReason.SESSIONS), {}),
        (CauseKind.UNREACHABLE, waits(WaitReason.BACKOFF), {}),
        (CauseKind.UNREACHABLE, {"waiting": (), "out": 0}, {"unreachable": 90, "deferred": 900, "leased": 0}),
        (CauseKind.REPUTATION, {}, {"refused": 60, "sites": (SiteRefusals("mx.test", 100, 60, "421 no"),)}),
        (CauseKind.REPUTATION, {**waits(WaitReason.BACKOFF, 200)}, {"refused": 90, "deferred": 700, "leased": 200}),
        (CauseKind.DNS, {"waiting": (), "out": 0, "asked": 800}, {}),
        (CauseKind.DNS, {"waiting": (), "out": 0}, {"unrouted": 90, "deferred": 900, "leased": 0}),
        (CauseKind.MEMORY, {"waiting": (), "out": 0, "is_memory_full": True}, {"due": 900, "leased": 0}),
        (CauseKind.HELD, {"waiting": (), "out": 0}, {"held": 900, "leased": 0}),
        (CauseKind.WAVES, {"waiting": (), "out": 0}, {"later_waves": 900, "leased": 0}),
    ],
)
def test_the_provoked_cause_goes_first(cause: CauseKind, node: dict[str, Any], facts: dict[str, Any]) -> None:
    assert first(node, **facts) is cause


def test_without_a_node_anywhere_that_is_the_cause_and_with_one_elsewhere_the_log_speaks() -> None:

    alone = msgspec.structs.replace(FACTS, node=None, nodes_living=0)
    assert diagnose(alone)[0].kind is CauseKind.NO_NODE
    elsewhere = msgspec.structs.replace(FACTS, node=None, nodes_living=1, refused=60)
    assert diagnose(elsewhere)[0].kind is CauseKind.REPUTATION


def test_each_cause_says_its_share_what_it_is_and_what_to_do() -> None:

    facts = msgspec.structs.replace(
        FACTS,
        refused=30,
        sites=(SiteRefusals("mx.test", 60, 30, "421 4.7.0 slow down"), SiteRefusals("other", 40, 0, "")),
    )
    causes = diagnose(facts)
    assert [round(cause.share, 3) for cause in causes] == sorted((round(c.share, 3) for c in causes), reverse=True)
    assert causes[0].what == "30 % of 100 attempts were refused lately: mx.test 50 % (421 4.7.0 slow down)"
    assert all(cause.do for cause in causes)


def test_a_suspension_goes_before_the_refusals_that_led_to_it() -> None:
    block = Suspension("error-rate-block", "a.test", "307 of 340 messages failed in 10 min, over 2 nodes", 900.0, 300)
    facts = msgspec.structs.replace(
        FACTS, node=None, refused=90, sites=(SiteRefusals("mx.test", 100, 90, "451 no"),), suspensions=(block,)
    )
    causes = diagnose(facts)
    assert [cause.kind for cause in causes] == [CauseKind.SUSPENDED, CauseKind.REPUTATION]
    assert "307 of 340" in causes[0].what
    assert "slow down" in causes[1].do
