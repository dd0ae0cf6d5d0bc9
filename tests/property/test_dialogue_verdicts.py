from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mta.smtp.dialogue import Dialogue, Kind
from mta.smtp.envelope import Envelope, Probe
from mta.smtp.extensions import Extensions

REPLIES = st.sampled_from(
    [b"250 ok\r\n", b"354 go\r\n", b"550 5.1.1 no\r\n", b"451 4.3.0 x\r\n", b"452 4.5.3 x\r\n", b"250-a\r\n250 b\r\n"]
    * 3
    + [b"421 4.3.2 bye\r\n", b"250 half", b"\r\n", b"junk\r\n", b"999 x\r\n", b"252 x\n"]
)
# What happens next: octets of the server, the caller, or the link.
EVENTS = st.lists(
    st.one_of(
        REPLIES,
        st.lists(REPLIES, max_size=6).map(b"".join),
        st.sampled_from(["offer", "body", "body", "body", "recall", "quit", "lost", "timed out"]),
    ),
    max_size=60,
)
OFFERS = st.builds(
    Extensions,
    pipelining=st.booleans(),
    chunking=st.booleans(),
    rcpt_max=st.sampled_from([None, 1, 2]),
    mail_max=st.sampled_from([None, 2]),
    rcpt_domain_max=st.sampled_from([None, 1, 2]),
)


@given(OFFERS, EVENTS, st.integers(1, 4), st.sets(st.integers(1, 5)))
@settings(max_examples=400, deadline=None)
def test_whatever_happens_each_recipient_gets_one_verdict(
    extensions: Extensions, events: list[bytes | str], recipients: int, probes: set[int]
) -> None:
    dialogue = Dialogue(extensions)
    offered = 0
    dots = 0  # bodies that went out
    for event in ["offer", "offer", *events, "lost"]:
        if isinstance(event, bytes):
            dialogue.receive(event)
        elif event == "offer":
            offered += 1
            kind = Probe if offered in probes else Envelope
            dialogue.offer(kind(offered, b"", tuple(b"r@d%d.test" % (n // 2) for n in range(recipients))))
        elif event == "body":
            due, dialogue.bodies_due = dialogue.bodies_due, []
            for envelope in due:
                assert not envelope.is_probe
                dialogue.body(envelope.token, [b"x\r\n"])
                dots += not dialogue.is_closed
        elif event == "recall":
            dialogue.recall()
        elif event == "quit":
            dialogue.quit()
        elif event == "timed out" and dialogue.awaiting is not None:
            dialogue.timed_out()
        elif event == "lost":
            dialogue.connection_lost("lost")
        if dialogue.is_closed:
            assert not dialogue.output
            assert not dialogue.bodies_due
        dialogue.output = []
        assert dialogue.load <= offered
    verdicts = [(verdict.token, verdict.recipient) for verdict in dialogue.verdicts]
    assert sorted(verdicts) == [(token, n) for token in range(1, offered + 1) for n in range(recipients)]
    assert {v.token for v in dialogue.verdicts if v.kind is Kind.PROBED} <= probes
    assert not probes & {v.token for v in dialogue.verdicts if v.kind in (Kind.ACCEPTED, Kind.IN_DOUBT)}
    decided_by_body = {v.token for v in dialogue.verdicts if v.kind in (Kind.ACCEPTED, Kind.IN_DOUBT)}
    assert len(decided_by_body) <= dots
    assert len({v.token for v in dialogue.verdicts if v.kind is Kind.IN_DOUBT}) <= 1
