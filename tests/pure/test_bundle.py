"""Bundles: opened when somebody trusted has signed exactly this, and refused with a reason else."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.bundle import BUNDLE_BYTES_MAX, make_key, open_bundle, parse_public_key, public_key_text, read_private_key
from mta.bundle.form import FORM
from mta.keeper.updating import is_due
from mta.model.errors import BadInput
from mta.queue.updates import Attempt, Result
from mta.settings import load_settings
from mta.settings.shipped import BOUNCE_RULES, PROVIDERS, load_updated_bounce_rules, load_updated_rules
from tests.support.bundles import MX_RULES, Maker, changed, texts

MAKER = Maker()
GOOD = MAKER.bundle(7, note="first of many")
DOCUMENT: dict[str, Any] = json.loads(GOOD)


def refused(content: bytes, trusted: list[str] | None = None) -> str:
    with pytest.raises(BadInput) as caught:
        open_bundle(content, [MAKER.public] if trusted is None else trusted, "b.json")
    return str(caught.value)


def signed(manifest: dict[str, Any] | bytes, maker: Maker = MAKER, files: dict[str, str] | None = None) -> bytes:
    """A document whose manifest is whatever it is, honestly signed."""
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    signature = base64.b64encode(maker.key.sign(FORM.encode() + b"\n" + text)).decode()
    document = {**DOCUMENT, "manifest": text.decode(), "signatures": [{"key": maker.public, "signature": signature}]}
    return json.dumps({**document, "files": texts() if files is None else files}).encode()


def manifest(**values: Any) -> dict[str, Any]:
    return {**json.loads(DOCUMENT["manifest"]), **values}


def test_what_is_made_can_be_opened() -> None:
    opened = open_bundle(GOOD, [Maker().public, MAKER.public], "b.json")
    assert (opened.manifest.version, opened.manifest.note, opened.signed_by) == (7, "first of many", MAKER.public)
    assert opened.texts == texts()
    assert opened.digest == hashlib.sha256(DOCUMENT["manifest"].encode()).hexdigest()
    assert opened.candidate.version == 7
    assert open_bundle(signed(manifest()), [MAKER.public], "b.json").texts == texts()


def test_a_signature_by_somebody_else_counts_for_nothing() -> None:
    assert "whom deliverability.public_keys does not name" in refused(Maker().bundle(7))
    assert "is empty" in refused(GOOD, [])
    assert refused(changed(GOOD, signatures=[])) == "b.json: is not signed"
    # A name is no key: the signature of a stranger under the name of somebody trusted.
    stranger = json.loads(Maker().bundle(7))["signatures"][0]["signature"]
    forged = changed(GOOD, signatures=[{"key": MAKER.public, "signature": stranger}])
    assert "does not fit" in refused(forged)


def test_what_was_changed_after_it_was_signed_is_refused() -> None:
    assert "does not fit" in refused(changed(GOOD, manifest=json.dumps(manifest(version=8))))
    assert "does not fit" in refused(changed(GOOD, manifest=DOCUMENT["manifest"] + " "))
    other = {**texts(), BOUNCE_RULES: texts("user_unknown")[BOUNCE_RULES]}
    assert "bounce-rules.toml is not the file that was signed" in refused(changed(GOOD, files=other))


def test_one_good_signature_of_several_is_enough() -> None:
    # While a key is exchanged, a bundle has the signatures of both.
    other = json.loads(Maker().bundle(7))["signatures"]
    assert open_bundle(changed(GOOD, signatures=other + DOCUMENT["signatures"]), [MAKER.public], "b").manifest


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is no bundle"),
        (b"null", "is no bundle"),
        (b"\xff\xfe", "is no bundle"),
        (b"[" * 100_000, "is no bundle"),
        (b"<html>sign in first</html>", "is no bundle"),
        (b" " * (BUNDLE_BYTES_MAX + 1), "is larger than"),
        (changed(GOOD, form="mta-deliverability-9"), "has the form 'mta-deliverability-9'"),
        (changed(GOOD, signatures=[{"key": MAKER.public, "signature": "!"}]), "does not fit"),
        (changed(GOOD, signatures=[{"key": "x", "signature": ""}] * 21), "is no bundle"),
        (signed(b"{}"), "manifest: Object missing required field"),
        (signed(manifest(version=0)), "manifest: Expected `int` >= 1"),
        (signed(manifest(version=2**60)), "manifest: Expected `int` <= "),
        (signed(manifest(created="2027-01-31T08:00:00")), "created has no time zone"),
        (signed(manifest(unpack_to="/etc")), "manifest: Object contains unknown field"),
        (signed(manifest(program_min="soon")), "program_min: 'soon' is no version"),
        (signed(manifest(program_min="99.0.0")), "bundle 7: needs mta 99.0.0 or newer"),
        (signed(manifest(note="a\x1b[31m")), "note must be printable"),
        (signed(manifest(files={})), "holds other files"),
        (signed(manifest(), files={}), "holds other files"),
        (signed(manifest(), files={**texts(), "../../etc/passwd": ""}), "holds other files"),
        (signed(manifest(), files={**texts(), PROVIDERS: " \n"}), "providers.toml is empty"),
        (signed(manifest(), files={**texts(), PROVIDERS: "#" * (1 << 20) + "#"}), "is larger than 1,048,576 bytes"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(content: bytes, what: str) -> None:
    assert what in refused(content)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_goes_unnoticed(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip", "drop"]))
    if kind == "cut":
        damaged = GOOD[:at]
    elif kind == "flip":
        damaged = GOOD[:at] + bytes([GOOD[at] ^ data.draw(st.integers(1, 255))]) + GOOD[at + 1 :]
    else:
        damaged = GOOD[:at] + GOOD[at + 1 :]
    try:
        opened = open_bundle(damaged, [MAKER.public], "b.json")
    except BadInput:
        return
    # What does not matter was hit: the space between values.
    assert (opened.texts, opened.manifest.version) == (texts(), 7)


def test_a_bundle_that_could_not_be_opened_is_not_made() -> None:
    with pytest.raises(BadInput, match="holds other files"):
        MAKER.bundle(1, {"notes.txt": "hello"})
    with pytest.raises(BadInput, match="needs mta"):
        MAKER.bundle(1, program_min="99.0.0")


# --- keys ----------------------------------------------------------------------------------------


def test_keys_are_made_for_nobody_else_to_read(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    public = make_key(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert public_key_text(read_private_key(file).public_key()) == public
    assert public_key_text(parse_public_key(public, "")) == public
    with pytest.raises(BadInput, match="is there already"):
        make_key(file)
    os.chmod(file, 0o640)
    with pytest.raises(BadInput, match="can be read or written by others"):
        read_private_key(file)
    os.chmod(file, 0o600)
    file.write_text("no key")
    with pytest.raises(BadInput, match="holds no private key"):
        read_private_key(file)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is no public key"),
        (base64.b64encode(bytes(32)).decode(), "is no public key"),
        ("ed25519:###", "is no public key"),
        ("ed25519:" + base64.b64encode(bytes(31)).decode(), "has 31 octets"),
    ],
)
def test_a_public_key_of_another_form_is_refused(text: str, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        parse_public_key(text, "x")


# --- settings ------------------------------------------------------------------------------------

KEY = public_key_text(Ed25519PrivateKey.generate().public_key())


def load(tmp_path: Path, text: str) -> Any:
    (tmp_path / "mta.toml").write_text(text)
    return load_settings(tmp_path / "mta.toml", environment={}, host_name="h")


def test_settings_arrive(tmp_path: Path) -> None:
    text = f'[deliverability]\nenabled = true\nsource = "in/b.json"\npublic_keys = ["{KEY}"]\ndaily_at = "23:05"\n'
    found = load(tmp_path, text).deliverability
    assert (found.source, found.at) == (str(tmp_path / "in/b.json"), datetime.time(23, 5, tzinfo=datetime.UTC))
    url = "https://updates.example.com/b.json"
    assert load(tmp_path, f'[deliverability]\nsource = "{url}"\n').deliverability.source == url


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("enabled = true", "enabled: needs source"),
        ('enabled = true\nsource = "b"', "enabled: needs public_keys"),
        ('source = "http://updates.example.com/b"', "expected https://host/path, or a file"),
        ('source = "ftp://updates.example.com/b"', "expected https://host/path, or a file"),
        ('source = "https:///b"', "expected https://host/path, or a file"),
        ('source = "https://me:secret@updates.example.com/b"', "may hold no user and password"),
        ('public_keys = ["abc"]', "is no public key"),
        ('daily_at = "24:00"', "is no time of the day"),
        ('daily_at = "4:30"', "is no time of the day"),
        ("dayly_at = 1", "did you mean 'daily_at'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_their_line(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, f"[deliverability]\n{text}\n")
    assert what in str(caught.value)
    assert caught.value.where.startswith(f"{tmp_path}/mta.toml:")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("refusals_min = 0", "expected an integer from 1"),
        ("percent_min = 101", "from 0 to 100"),
        ("categories = { mailbox_full = { refusals_min = 1, percent_min = 1 } }", "is no fault of ours"),
        ("categories = { policy = { refusals_min = 1 } }", "percent_min"),
        ("categories = { policy = 3 }", "expected a table"),
    ],
)
def test_alarms_that_make_no_sense_are_refused_with_their_line(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, f"[alarms]\n{text}\n")
    assert what in str(caught.value)
    assert caught.value.where == f"{tmp_path}/mta.toml:2"


# --- what stands in the place of what ------------------------------------------------------------


def test_only_shipped_files_are_replaced(tmp_path: Path) -> None:
    own, shipped = tmp_path / "bounce-rules.local.toml", tmp_path / BOUNCE_RULES
    own.write_text(texts("user_unknown")[BOUNCE_RULES].replace("sleeping", "dozing"))
    shipped.write_text("this is no TOML, and is not even read")
    update = texts("account_disabled")
    rules = load_updated_bounce_rules([own, shipped], update, "bundle 7")
    assert [(rule.name, rule.category.label, rule.label) for rule in rules] == [
        ("dozing", "user_unknown", "bounce-rules.local.toml: dozing"),
        ("sleeping", "account_disabled", "bounce-rules.toml: sleeping"),
    ]
    # A file of another name is the operator's choice, whatever an update brings.
    (tmp_path / "mine.toml").write_text(own.read_text())
    assert len(load_updated_bounce_rules([tmp_path / "mine.toml"], update)) == 1
    with pytest.raises(BadInput, match=r"bundle 7/bounce-rules\.toml:3: rule\.category"):
        load_updated_bounce_rules([own, shipped], texts("sleepy"), "bundle 7")


def test_rules_for_providers_are_replaced_where_they_are_included(tmp_path: Path) -> None:
    (tmp_path / "mx-rules.toml").write_text(MX_RULES)
    (tmp_path / PROVIDERS).write_text(texts(connections=3)[PROVIDERS])
    for connections, update in ((3, {}), (8, texts(connections=8))):
        rules = load_updated_rules(tmp_path / "mx-rules.toml", update)
        assert rules.match("mx.big.example", 1).connections_max == connections
        assert rules.match("mx.other.example", 1).connections_max == 10
    with pytest.raises(BadInput, match=r"bundle 7/providers\.toml:8: rule\.connections_max"):
        load_updated_rules(tmp_path / "mx-rules.toml", texts(connections=-1), "bundle 7")
    # The fault is the operator's, in a file of theirs, when it does not fit what is new.
    taken = MX_RULES.replace('name = "everybody"', 'name = "huge"')
    (tmp_path / "mx-rules.toml").write_text(taken)
    update = texts()
    update[PROVIDERS] = update[PROVIDERS].replace('name = "big"\nprovider', 'name = "huge"\nprovider')
    with pytest.raises(BadInput, match=r"mx-rules\.toml:5: rule\.name: the name 'huge' is taken") as caught:
        load_updated_rules(tmp_path / "mx-rules.toml", update, "bundle 7")
    assert not caught.value.where.startswith("bundle")
    # Who includes nothing of that name is not concerned.
    (tmp_path / "mx-rules.toml").write_text(MX_RULES.replace("providers.toml", "own.toml"))
    (tmp_path / "own.toml").write_text(texts(connections=5)[PROVIDERS])
    rules = load_updated_rules(tmp_path / "mx-rules.toml", texts(connections=8))
    assert rules.match("mx.big.example", 1).connections_max == 5


# --- the schedule --------------------------------------------------------------------------------

AT = datetime.time(4, 30, tzinfo=datetime.UTC)


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(f"2027-03-{text}:00Z")


def attempt(text: str, result: Result = Result.CURRENT) -> Attempt:
    return Attempt(1, moment(text), "", "s", 1, result, "", None)


@pytest.mark.parametrize(
    ("now", "last", "due"),
    [
        ("10T12:00", None, True),  # just switched on
        ("10T04:29", attempt("09T04:30"), False),
        ("10T04:30", attempt("09T04:30"), True),
        ("10T04:31", attempt("10T04:30"), False),
        ("11T04:29", attempt("10T04:30"), False),
        ("13T12:00", attempt("10T04:30"), True),  # away for days: one is due,
        ("13T12:01", attempt("13T12:00"), False),  # and only one
        ("14T04:30", attempt("13T12:00"), True),
        ("10T05:29", attempt("10T04:30", Result.FAILED), False),
        ("10T05:30", attempt("10T04:30", Result.FAILED), True),
        ("10T12:00", attempt("10T04:30", Result.REFUSED), False),
    ],
)
def test_one_attempt_a_day_and_one_for_those_that_were_missed(now: str, last: Attempt | None, due: bool) -> None:
    assert is_due(moment(now), AT, last) is due
