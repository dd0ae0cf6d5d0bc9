"""docs/content.md says what the code does: every key, every example, every figure."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from mta.message import Attachment, Content, Format, InlineImage, ListUnsubscribe, Structure, load_content
from mta.message.content import EXTRA_HEADERS_MAX
from mta.message.dkim import OVERSIGNED_HEADERS, RSA_BITS_MAX, RSA_BITS_MIN, SIGNED_HEADERS
from mta.message.fields import BUILT_IN, MERGE_FIELD_USES_MAX, Filter
from mta.message.formats import MASKS_MAX
from mta.message.headers import HEADER_OCTETS_MAX
from mta.message.values import MERGED_CHARS_MAX
from mta.model.limits import (
    ATTACHED_BYTES_MAX,
    ATTACHMENTS_MAX,
    FORMATS_MAX,
    IMAGES_MAX,
    MERGE_FIELDS_MAX,
    TEMPLATE_BYTES_MAX,
)

TEXT = (Path(__file__).parents[2] / "docs" / "content.md").read_text()
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL))
EXAMPLES = re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
MIB = 1024 * 1024


def test_each_key_has_its_section_and_the_reverse() -> None:
    assert list(SECTIONS) == list(Content.__struct_fields__)


@pytest.mark.parametrize(
    ("key", "inner"),
    [
        ("list_unsubscribe", ListUnsubscribe),
        ("attachments", Attachment),
        ("images", InlineImage),
        ("formats", Format),
    ],
)
def test_each_key_inside_stands_in_the_table_of_its_section(key: str, inner: type[msgspec.Struct]) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", SECTIONS[key], re.MULTILINE)
    assert sorted(rows) == sorted(inner.__struct_fields__)


def test_required_keys_are_marked() -> None:
    required = [key for key in SECTIONS if SECTIONS[key].lstrip().startswith("Required.")]
    assert required == ["sender", "subject"]


def test_filters_and_built_in_fields_are_named() -> None:
    language = TEXT.partition("## Merge fields")[2].partition("## Keys")[0]
    assert all(f"{{{{name\\|{one.value}}}}}" in language for one in Filter if one.value)
    assert all(f"`{name}`" in language for name in BUILT_IN)
    assert all(f'`"{one.value}"`' in SECTIONS["formats"] for one in Structure)


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_loaded(example: str) -> None:
    assert load_content(example.encode(), "docs/content.md").sender


def test_the_headers_signed_are_those_of_the_code() -> None:
    paragraph = TEXT.partition("Signed are,")[2].partition("; and the whole body")[0]
    assert tuple(re.findall(r"`([A-Z][\w-]+)`", paragraph)) == SIGNED_HEADERS
    paragraph = TEXT.partition("named once more than it is there:")[2].partition(". So nobody")[0]
    assert tuple(re.findall(r"`([A-Z][\w-]+)`", paragraph)) == OVERSIGNED_HEADERS
    assert f"({RSA_BITS_MIN} to {RSA_BITS_MAX}\nbits)" in TEXT


def test_the_figures_named_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", TEXT.partition("## Limits")[2], re.MULTILINE))
    assert rows["texts and headers together"] == f"{TEMPLATE_BYTES_MAX // MIB} MiB"
    assert (
        rows["attachments and images together, before base64"]
        == f"{ATTACHED_BYTES_MAX // MIB} MiB, {ATTACHMENTS_MAX} attachments, {IMAGES_MAX} images"
    )
    assert rows["one header"].startswith(f"{HEADER_OCTETS_MAX // 1024} KiB, a subject {HEADER_OCTETS_MAX // 4:,} ")
    assert rows["different merge fields"] == f"{MERGE_FIELDS_MAX}, used {MERGE_FIELD_USES_MAX:,} times in all"
    assert rows["characters that values put into one message"] == f"{MERGED_CHARS_MAX // MIB} Mi"
    assert rows["formats"] == f"{FORMATS_MAX}, {MASKS_MAX:,} masks in all"
    assert f"{EXTRA_HEADERS_MAX} at most" in SECTIONS["headers"]
