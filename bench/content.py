"""What the benches send: text of any size, or the HTML of a newsletter with twenty merge fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from mta.queue.part import Row

FIELDS: Final = ("first_name", "voucher")
NEWSLETTER_FIELDS: Final = (
    *("first_name", "last_name", "salutation", "city", "branch", "voucher", "voucher_ends", "points", "level"),
    *(f"offer_{number}" for number in range(1, 9)),
    *("account", "token", "footer"),
)
SIGNED_DOMAIN: Final = "shop.example"
UNSIGNED_DOMAIN: Final = "plain.example"  # the same, and nobody has a key for it
_LINE: Final = "This line fills the body up to the size that was asked for, as news do.\n"


def content_of(size_bytes: int, *, domain: str = SIGNED_DOMAIN) -> bytes:
    """A content whose body has about ``size_bytes`` bytes, personalised at its beginning and its end."""
    frame = "Hello {{first_name}},\n\n", "\nYour voucher: {{voucher}}\n"
    filler = _LINE * (1 + size_bytes // len(_LINE))
    text = frame[0] + filler[: max(1, size_bytes - sum(map(len, frame)))] + frame[1]
    return msgspec.json.encode(
        {"sender": f'"Bench" <news@{domain}>', "subject": "News for {{first_name}}", "text": text}
    )


def newsletter_of(size_bytes: int) -> bytes:
    """HTML of about ``size_bytes`` bytes with each of `NEWSLETTER_FIELDS` once, spread over all of it."""
    uses = [f'<p class="offer">{name.replace("_", " ")}: <b>{{{{{name}}}}}</b></p>\n' for name in NEWSLETTER_FIELDS]
    row = (
        '<tr><td align="left" style="font: 14px sans-serif; color: #333"><a href="https://shop.example/offers">'
        "Something that is on offer this week, and what it costs</a></td></tr>\n"
    )
    rows_each = max(1, round((size_bytes - sum(map(len, uses))) / len(row) / len(uses)))
    body = "".join(f"{use}<table>\n{row * rows_each}</table>\n" for use in uses)
    html = f"<!DOCTYPE html>\n<html><body>\n<h1>News of the week</h1>\n{body}</body></html>\n"
    sender = f'"Bench" <news@{SIGNED_DOMAIN}>'
    return msgspec.json.encode({"sender": sender, "subject": "{{first_name}}, this week in {{city}}", "html": html})


def row_of(address: str, number: int) -> Row:
    """A recipient with values for `FIELDS`."""
    return address, None, ["Ann", f"V-{number:08d}"]


def newsletter_row_of(address: str, number: int) -> Row:
    """A recipient with values for `NEWSLETTER_FIELDS`: some ten characters each, none of them twice alike."""
    return address, None, [f"{name[:5]} {number + at:07d}" for at, name in enumerate(NEWSLETTER_FIELDS)]


def rows_over(recipients: int, domains: int, suffix: str) -> Iterator[Row]:
    """``recipients`` people, over the domains d0, d1, ... of ``suffix`` in turn."""
    return (row_of(f"user{i}@d{i % domains}.{suffix}", i) for i in range(recipients))
