"""Events as they are told, and the settings that say where."""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mta.model.errors import BadInput
from mta.model.event import KINDS, TEST_KIND, Event, event_id, make_event
from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status
from mta.settings.config import load_settings
from mta.settings.streams import FilesSettings, KafkaSettings, NatsSettings, WebhookSettings
from mta.stream.webhook import parse_secrets, retry_after_s, signature
from tests.support.streams import SECRET, SECRET_TEXT

AT = datetime.datetime(2027, 1, 31, 8, 0, 0, 123456, tzinfo=datetime.UTC)


def an_event(**more: Any) -> Event:
    values: dict[str, Any] = {
        "at": AT,
        "delivery": 17,
        "delivery_name": "Spring",
        "number": 65_537,
        "attempt": 2,
        "status": Status.FAILED,
        "reason": Reason.USER_UNKNOWN,
        "type": FailureType.HARD,
        "category": Category.USER_UNKNOWN,
        "code": 550,
        "enhanced": "5.1.1",
        "address": "Ann@Example.COM",
        "reference": None,
        "site": "mx.example.com",
        "mx_host": "mx.example.com",
        "egress": "a",
        "reply": "no such \u00fcser",
        "bytes": 0,
    }
    return make_event(**{**values, **more})


def test_an_event_as_it_is_written() -> None:
    assert json.loads(msgspec.json.encode(an_event())) == {
        "v": 1,
        "id": "17-65537-2-2-1801382400123456",
        "kind": "failed",
        "at": "2027-01-31T08:00:00.123456Z",
        "delivery": 17,
        "delivery_name": "Spring",
        "number": 65_537,
        "reference": None,
        "address": "Ann@Example.COM",
        "domain": "example.com",
        "site": "mx.example.com",
        "mx_host": "mx.example.com",
        "egress": "a",
        "attempt": 2,
        "code": 550,
        "enhanced": "5.1.1",
        "type": "hard",
        "reason": "user-unknown",
        "reason_code": 1,
        "category": "user_unknown",
        "reply": "no such \u00fcser",
        "bytes": 0,
    }


def test_an_event_is_one_line_whatever_a_server_said() -> None:
    assert b"\n" not in msgspec.json.encode(an_event(reply="two\r\nlines\u2028\x00"))


def test_each_status_has_its_kind_and_what_is_not_known_stays_a_number() -> None:
    assert set(KINDS.values()) == set(Status)
    assert TEST_KIND not in KINDS
    assert KINDS["in-doubt"] is Status.IN_DOUBT
    strange = an_event(status=99, type=98, reason=97, category=96)
    assert (strange.kind, strange.type, strange.reason, strange.reason_code, strange.category) == (
        "99",
        "98",
        "97",
        97,
        "96",
    )


def test_the_id_tells_lines_apart_to_the_microsecond() -> None:
    later = AT + datetime.timedelta(microseconds=1)
    elsewhere = AT.astimezone(datetime.timezone(datetime.timedelta(hours=5)))
    assert event_id(1, 2, 3, 4, AT) == event_id(1, 2, 3, 4, elsewhere) != event_id(1, 2, 3, 4, later)


def test_signatures_are_those_of_the_published_example() -> None:
    # The example of the Standard Webhooks libraries.
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected
    both = signature([secret, SECRET], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert both.split(" ")[0] == expected
    assert len(both.split(" ")) == 2


def test_secrets_are_read_and_never_shown() -> None:
    assert parse_secrets(f"{SECRET_TEXT}\n{SECRET_TEXT}\n", "here") == [SECRET, SECRET]
    for bad in ("", "whsec_", "secret", "whsec_!!!!", "whsec_c2hvcnQ=", f"{SECRET_TEXT}\n" * 4, SECRET_TEXT[6:]):
        with pytest.raises(BadInput, match=r"here: stream\.secret_file") as refused:
            parse_secrets(bad, "here")
        assert "c2hvcnQ" not in str(refused.value)
        assert SECRET_TEXT[6:] not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        (" 120 ", 120),
        ("9999999999999", 3600),
        ("-5", 0),
        ("soon", 0),
        ("Sun, 31 Jan 2027 08:01:00 GMT", 59.876544),
        ("Sun, 31 Jan 2027 07:00:00 GMT", 0),
        ("Sun, 31 Jan 2027 25:00:00 GMT", 0),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    assert retry_after_s(value, AT) == pytest.approx(seconds)


WEBHOOK = (
    '[[stream]]\nname = "crm"\nsink = "webhook"\nurl = "https://crm.example.com/events"\nsecret_file = "keys/crm"\n'
)
FILES = '[[stream]]\nname = "archive"\nsink = "files"\ndirectory = "/var/lib/mta/events"\n'
KAFKA = '[[stream]]\nname = "k"\nsink = "kafka"\nservers = ["k1.example.com:9092"]\ntopic = "mta.events"\n'
NATS = '[[stream]]\nname = "n"\nsink = "nats"\nservers = ["nats://n1.example.com:4222"]\nsubject = "mta.events"\n'


def load(tmp_path: Path, text: str) -> tuple[Any, ...]:
    (tmp_path / "mta.toml").write_text(text)
    return load_settings(tmp_path / "mta.toml", environment={}, host_name="a").streams


def test_streams_of_a_file(tmp_path: Path) -> None:
    more = 'kinds = ["bounced", "complained"]\ndeliveries = [17]\nbegin = "beginning"\n'
    webhook, files, kafka, nats = load(tmp_path, WEBHOOK + more + FILES + KAFKA + NATS)
    assert isinstance(webhook, WebhookSettings)
    assert (webhook.kinds, webhook.deliveries, webhook.begin) == (("bounced", "complained"), (17,), "beginning")
    assert webhook.secret_file == str(tmp_path / "keys" / "crm")
    assert webhook.where == f"{tmp_path / 'mta.toml'}:1"
    assert isinstance(files, FilesSettings)
    assert (files.batch_events_max, files.directory) == (5_000, "/var/lib/mta/events")
    assert isinstance(kafka, KafkaSettings)
    assert isinstance(nats, NatsSettings)
    assert load(tmp_path, "") == ()


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("stream = 3\n", 1, "two brackets"),
        ("[[stream]]\n", 1, "'sink' is missing"),
        ('[[stream]]\nsink = "amqp"\n', 2, "'webhook', 'files', 'kafka', 'nats'"),
        ('[[stream]]\nsink = "files"\nname = "a"\n', 1, "'directory' is missing"),
        (FILES.replace("archive", "../x"), 2, "not allowed"),
        (FILES.replace('"/var/lib/mta/events"', '""'), 4, "is empty"),
        (FILES + 'url = "https://x.example/"\n', 5, "unknown key"),
        (FILES + 'where = "x"\n', 5, "unknown key"),
        (FILES + 'kinds = ["delivered", "opened"]\n', 5, "no kind of event"),
        (FILES + "deliveries = [0]\n", 5, "no number of a delivery"),
        (FILES + "batch_events_max = 0\n", 5, "from 1 to 10,000"),
        (FILES + 'begin = "later"\n', 5, "'now', 'beginning'"),
        (FILES + FILES, 6, "is the name of"),
        (WEBHOOK.replace("https://crm", "http://crm"), 4, "insecure_http"),
        (WEBHOOK.replace("https://crm", "https://u:pw@crm"), 4, "user"),
        (WEBHOOK.replace("https://crm", "ftp://crm"), 4, "no URL"),
        (WEBHOOK.replace("example.com/", "example.com:99999/"), 4, "no URL"),
        (WEBHOOK + 'format = "xml"\n', 6, "'json', 'ndjson'"),
        (KAFKA.replace(":9092", ""), 4, "host:port"),
        (KAFKA.replace('"mta.events"', '"mta events"'), 5, "topic"),
        (KAFKA + 'user = "u"\n', 6, "go together"),
        (NATS.replace("nats://", "http://"), 4, "nats://"),
        (NATS.replace('"mta.events"', '"mta.>"'), 5, "wildcards"),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused_at_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(BadInput, match=f"mta.toml:{line}: stream") as refused:
        load(tmp_path, text)
    assert said in str(refused.value)
    assert "pw@" not in str(refused.value)


def test_http_to_this_machine_and_where_it_is_asked_for(tmp_path: Path) -> None:
    assert load(tmp_path, WEBHOOK.replace("https://crm.example.com", "http://127.0.0.1:8080"))
    assert load(tmp_path, WEBHOOK.replace("https://crm", "http://crm") + "insecure_http = true\n")
