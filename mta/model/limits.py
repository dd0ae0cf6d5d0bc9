"""Bounds that hold everywhere: name, unit, value, reason. Relations between them are asserted below."""

from __future__ import annotations

from typing import Final

LOCAL_PART_OCTETS_MAX: Final = 64  # RFC 5321 §4.5.3.1.1
DOMAIN_OCTETS_MAX: Final = 255  # RFC 5321 §4.5.3.1.2
PATH_OCTETS_MAX: Final = 256  # RFC 5321 §4.5.3.1.3, with the angle brackets
TEXT_LINE_OCTETS_MAX: Final = 998  # RFC 5321 §4.5.3.1.6, without CRLF
HEADER_LINE_OCTETS_AIM: Final = 78  # RFC 5322 §2.1.1

# A recipient's number is append_id << 16 | index, so a part can never hold more than this.
PART_INDEX_BITS: Final = 16
PART_RECIPIENTS_MAX: Final = 10_000  # keeps a part's packed value under a few MB in memory
PART_BYTES_MAX: Final = 16 * 1024 * 1024
MERGE_FIELDS_MAX: Final = 200
MERGE_VALUE_BYTES_MAX: Final = 64 * 1024
REFERENCE_CHARS_MAX: Final = 200
KEY_CHARS_MAX: Final = 200  # idempotency key
TEMPLATE_BYTES_MAX: Final = 5 * 1024 * 1024
ATTACHED_BYTES_MAX: Final = 10 * 1024 * 1024  # files together, before base64; many servers stop at 10 to 25 MB
ATTACHMENTS_MAX: Final = 20
IMAGES_MAX: Final = 50
FORMATS_MAX: Final = 100
# Of a message on the wire; what is larger slows the sending (campaign-mta §12 row 70).
MESSAGE_BYTES_ADVISED: Final = 35_000
MESSAGE_BYTES_WARNED: Final = 60_000
# A content as JSON: its texts, what is attached as base64, and 1 MB for everything else.
CONTENT_BYTES_MAX: Final = TEMPLATE_BYTES_MAX + ATTACHED_BYTES_MAX * 4 // 3 + 1024 * 1024

# The size of automatic parts: clamp(total / 1024, 8, 256), campaign-mta §12 row 3.
AUTO_PART_RECIPIENTS_MIN: Final = 8
AUTO_PART_RECIPIENTS_MAX: Final = 256
AUTO_PART_DIVISOR: Final = 1024

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024  # master <-> child

assert PART_RECIPIENTS_MAX < 1 << PART_INDEX_BITS
assert AUTO_PART_RECIPIENTS_MIN < AUTO_PART_RECIPIENTS_MAX <= PART_RECIPIENTS_MAX
assert PART_BYTES_MAX < FRAME_BYTES_MAX
assert MESSAGE_BYTES_ADVISED < MESSAGE_BYTES_WARNED
assert CONTENT_BYTES_MAX < FRAME_BYTES_MAX // 2


def automatic_part_recipients(total: int) -> int:
    """Recipients a part for a delivery of ``total``, when nothing else was asked (campaign-mta §12 row 3)."""
    return max(AUTO_PART_RECIPIENTS_MIN, min(AUTO_PART_RECIPIENTS_MAX, total // AUTO_PART_DIVISOR))
