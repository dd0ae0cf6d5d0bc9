"""docs/events.md: fields, kinds, keys, figures and the example that verifies are those of the code."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mta.model.event import KINDS, Event
from mta.model.outcome import Status
from mta.settings.config import load_settings
from mta.settings.streams import SINKS, StreamSettings
from mta.stream import stream, webhook
from mta.stream.webhook import signature
from tests.support.streams import SECRET, SECRET_TEXT

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "events.md").read_text()
SHIPPED = (ROOT / "config" / "mta.toml").read_text()
SECTIONS = dict(re.findall(r"^##+ (.*?)\n(.*?)(?=^##+ |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def rows(section: str, title: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of the table with this head."""
    table = re.search(rf"^\| {title} \|.*\n\|-.*\n((?:\|.*\n)+)", SECTIONS[section], re.MULTILINE)
    assert table is not None, (section, title)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    return {first: rest for first, *rest in cells}


def test_every_field_has_its_row_in_order() -> None:
    assert [name.strip("`") for name in rows("An event", "field")] == list(Event.__struct_fields__)


def test_the_example_is_an_event() -> None:
    example = re.search(r"```json\n(.*?)\n```", SECTIONS["An event"], re.DOTALL)
    assert example is not None
    event = msgspec.json.decode(example[1], type=Event)
    assert msgspec.json.encode(event) == example[1].encode()
    assert event.id.startswith(f"{event.delivery}-{event.number}-{event.attempt}-{KINDS[event.kind]:d}-")


def test_every_kind_has_its_row_and_the_first_are_final() -> None:
    told = [name.strip("`") for name in rows("An event", "kind")]
    assert set(told) == set(KINDS)
    assert {KINDS[kind] for kind in told[:6]} == {status for status in Status if status.is_final}
    assert {KINDS[kind] for kind in told[-3:]} == {Status.BOUNCED, Status.COMPLAINED, Status.UNSUBSCRIBED}


def shown(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    ("section", "title", "kind"),
    [
        ("Settings", "key of every stream", StreamSettings),
        ("Webhook", "key", SINKS["webhook"]),
        ("Files", "key", SINKS["files"]),
        ("Kafka", "key", SINKS["kafka"]),
        ("NATS", "key", SINKS["nats"]),
    ],
)
def test_every_key_has_its_row_with_its_default(section: str, title: str, kind: type[StreamSettings]) -> None:
    common = {field.name for field in msgspec.structs.fields(StreamSettings)}
    expected = {
        field.name: "" if field.required else shown(field.default)
        for field in msgspec.structs.fields(kind)
        if field.name != "where" and (kind is StreamSettings or field.name not in common)
    }
    told = {}
    for names, (_, default) in rows(section, title).items():
        keys = [name.strip(" `") for name in names.split(",")]
        defaults = default.split(",") if len(keys) > 1 else [default.partition(";")[0]]
        told |= {key: one.strip(" `") for key, one in zip(keys, defaults, strict=True)}
    assert told == {key: re.sub(r"\.0$", "", value) for key, value in expected.items()}


def test_files_have_larger_batches_as_told() -> None:
    told = rows("Settings", "key of every stream")
    files: Any = {field.name: field.default for field in msgspec.structs.fields(SINKS["files"])}
    for key in ("batch_events_max", "batch_kbytes_max"):
        assert told[f"`{key}`"][1].endswith(f"files {files[key]}")


def test_the_examples_load(tmp_path: Path) -> None:
    tables = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert len(tables) == 4
    for table in tables:
        (tmp_path / "mta.toml").write_text(table)
        assert len(load_settings(tmp_path / "mta.toml", environment={}, host_name="a").streams) == 1


def test_the_shipped_file_shows_a_stream_that_loads(tmp_path: Path) -> None:
    shown_tables = re.findall(r"^# (\[\[stream\]\]\n(?:# .*\n)+)", SHIPPED, re.MULTILINE)
    assert len(shown_tables) == 2
    (tmp_path / "mta.toml").write_text("".join(re.sub(r"^# ", "", one, flags=re.MULTILINE) for one in shown_tables))
    assert len(load_settings(tmp_path / "mta.toml", environment={}, host_name="a").streams) == 2


def test_the_example_that_verifies_does(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    now = int(time.time())

    def headers(at: int, secret: bytes = SECRET) -> dict[str, str]:
        signed = signature([b"another", secret], "b1", at, b"[]")
        return {"webhook-id": "b1", "webhook-timestamp": str(at), "webhook-signature": signed}

    assert names["verify"](SECRET_TEXT, headers(now), b"[]")
    assert not names["verify"](SECRET_TEXT, headers(now), b"[1]")
    assert not names["verify"](SECRET_TEXT, headers(now, b"a third"), b"[]")
    assert not names["verify"](SECRET_TEXT, headers(now - 400), b"[]")
    assert not names["verify"](SECRET_TEXT, {**headers(now), "webhook-id": "b2"}, b"[]")
    assert not names["verify"](SECRET_TEXT, {**headers(now), "webhook-timestamp": "now"}, b"[]")


def test_figures_are_those_of_the_code() -> None:
    assert (stream.AGAIN_S_MIN, stream.AGAIN_S_MAX, stream.STOPPED_AGAIN_S) == (1, 300, 300)
    assert webhook.RETRY_AFTER_S_MAX == 3_600
    assert (webhook.SECRET_OCTETS_MIN, webhook.SECRET_OCTETS_MAX, webhook.SECRETS_MAX) == (24, 64, 3)
