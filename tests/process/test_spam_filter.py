"""What a spam filter says of how our messages are built: nothing, fresh and after hours in the queue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mta.sink.record import read_body
from tests.support.keys import ed25519_pem, rsa_pem
from tests.support.letters import date_of
from tests.support.node import World
from tests.support.outcomes import value
from tests.support.postgres import Database
from tests.support.spam_filter import as_received, needs_spamassassin, scores

SIX_HOURS_S = 6 * 3600
INFORMATIONAL_MAX = 0.01  # a rule that says what is there, and weighs nothing by itself: HTML_MESSAGE, T_...
# Rules that do not judge how the message is built.
NOT_OURS = {
    "RCVD_ILLEGAL_IP": "of the trace that the test puts in front: it has an address that is reserved for examples",
}
PARAGRAPHS = (
    "Hello {{first}},",
    "the spring catalogue is out, with the boots that you asked about last autumn. They come in three widths, and the "
    "smallest size is back.",
    "Our shop in the old harbour is open again from Monday on. Come by if you are near: there is tea, and somebody who "
    "knows about resoling.",
    "From here on we also mend bags.",
)
CATALOGUE = "https://shop.example/catalogue?c={{first|url}}"
LEAVE = "https://shop.example/leave?c={{first|url}}"
IMPRINT = "You get this mail since you ordered from us. Shop Ltd, 1 Harbour Street, Oldtown."
CAMPAIGN = {
    "sender": '"Müller & Söhne" <news@shop.example>',
    "subject": "The spring catalogue, {{first}}",
    "to_name": "{{first}}",
    "text": "\n\n".join([*PARAGRAPHS, f"The catalogue: {CATALOGUE}", f"{IMPRINT} To leave: {LEAVE}"]) + "\n",
    "html": '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>News</title></head>\n<body>\n'
    + "\n".join(f"<p>{paragraph}</p>" for paragraph in PARAGRAPHS)
    + f'\n<p><a href="{CATALOGUE}">The catalogue</a></p>\n<p>{IMPRINT} <a href="{LEAVE}">Leave this list</a></p>\n'
    "</body>\n</html>\n",
    "list_unsubscribe": {"url": LEAVE, "mailto": "leave@shop.example?subject={{first|url}}"},
    "headers": {"List-Id": "<news.shop.example>", "Feedback-ID": "spring:shop"},
}
WAITED = """
WITH of_delivery AS (
    UPDATE mta.delivery SET started_at = started_at - make_interval(secs => $2) WHERE id = $1
)
UPDATE mta.delivery_part SET appended_at = appended_at - make_interval(secs => $2)
WHERE delivery_id = $1 RETURNING id
"""
SIGNED_TWICE = "".join(
    f'[[dkim]]\ndomain = "shop.example"\nselector = "{selector}"\nkey = "{selector}.pem"\n' for selector in ("r1", "e1")
)


async def received(directory: Path, database: Database, waited_s: int) -> tuple[bytes, bytes]:
    """A campaign's message that a daemon sent, and the same as its receiver stores it."""
    async with World(directory, database, bodies=True) as world:
        node = world.node(children=1, settings=SIGNED_TWICE)
        for name, pem in (("r1.pem", rsa_pem()), ("e1.pem", ed25519_pem())):
            (node.directory / name).write_bytes(pem)
            (node.directory / name).chmod(0o600)
        delivery = await world.deliver(["ann@d0.test"], content=json.dumps(CAMPAIGN).encode(), value="Zoë")
        await value(world, WAITED, delivery, waited_s)
        await node.start()
        await world.wait_for(delivery)
        [one] = world.record().accepted
        message = read_body(world.record_dir, one)
        return message, as_received(message, one.mail_from, one.recipients[0], one.unix_s)


@needs_spamassassin
@pytest.mark.parametrize("waited_s", [0, SIX_HOURS_S], ids=["fresh", "after six hours"])
async def test_a_campaigns_message_scores_no_point_for_how_it_is_built(
    tmp_path: Path, database: Database, waited_s: int
) -> None:
    message, stored = await received(tmp_path, database, waited_s)
    assert message.count(b"DKIM-Signature:") == 2
    assert b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" in message
    found = await scores(stored, tmp_path)
    assert "HTML_MESSAGE" in found  # it has looked into it
    ours = {rule: points for rule, points in found.items() if rule not in NOT_OURS and points > INFORMATIONAL_MAX}
    assert ours == {}


@needs_spamassassin
async def test_the_filter_sees_a_date_that_is_old(tmp_path: Path, database: Database) -> None:
    """So the test above would: the trace that it puts in front is understood."""
    message, _ = await received(tmp_path, database, 0)
    stored = as_received(message, "news@shop.example", "ann@d0.test", date_of(message) + SIX_HOURS_S - 60)
    found = await scores(stored, tmp_path)
    assert found["DATE_IN_PAST_03_06"] > INFORMATIONAL_MAX
