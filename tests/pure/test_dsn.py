"""The name of the database: what is refused, and that nothing of a password is ever told."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.model.errors import BadInput
from mta.queue.dsn import check_dsn, place_of, redact, without_database
from mta.settings import load_settings

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql:///mta",
        "postgres://me@h/mta",
        "postgresql://me:a%2Fb%40c@db1:5432,db2:5433/mta?target_session_attrs=read-write",
        "postgresql://me:p@[2001:db8::1]:5432/mta",
        "postgresql://postgres@/mta?host=%2Frun%2Fpostgresql",
        "postgresql://me@/mta?host=/run/postgresql&port=5433&sslmode=require",
        "postgresql:///mta?user=me@azure",
    ],
)
def test_what_libpq_takes_is_taken(dsn: str) -> None:
    check_dsn(dsn, "here")


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        (f"postgresql://u:{SECRET}/x@h/db", "%2F"),
        (f"postgresql://u:12/{SECRET}@h/db", "%2F"),
        (f"postgresql://u:{SECRET}?x@h/db", "%3F"),
        (f"postgresql://u:{SECRET}#x@h/db", "%23"),
        (f"postgresql://u:{SECRET}@x@h/db", "%40"),
        (f"postgresql://u:{SECRET}%zz@h/db", "%25"),
        (f"postgresql://u:{SECRET} x@h/db", "%20"),
        (f"postgresql://u:{SECRET}@h:port/db", "port"),
        (f"postgresql://u:{SECRET}@h:99999/db", "port"),
        (f"postgresql://u:{SECRET}@h,,g/db", "host"),
        (f"postgresql://u:{SECRET}@2001:db8::1/db", "brackets"),
        (f"postgresql://u:{SECRET}@[h/db", "host"),
        (f"postgresql://u@h/db?password={SECRET}&x", "name=value"),
        (f"host=h password={SECRET}", "expected postgresql://"),
        (f"mysql://u:{SECRET}@h/db", "expected postgresql://"),
    ],
)
def test_what_is_malformed_is_one_sentence_that_shows_nothing_of_it(dsn: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"^here: .*{says}") as caught:
        check_dsn(dsn, "here")
    file = tmp_path / "mta.toml"
    file.write_text(f"[database]\ndsn = '{dsn}'\n")
    with pytest.raises(BadInput) as of_file:
        load_settings(file, environment={})
    with pytest.raises(BadInput) as of_environment:
        load_settings(None, environment={"MTA_DATABASE_URL": dsn})
    for told in (caught, of_file, of_environment):
        assert SECRET not in str(told.value)
        assert "\n" not in str(told.value)
    assert of_file.value.where.endswith("mta.toml:2")
    assert SECRET not in place_of(dsn)


@pytest.mark.parametrize(
    "written",
    [
        f"[database]\ndsn = ['postgresql://u:{SECRET}@h/db']\n",
        f"[database]\ndsn = {{ url = 'postgresql://u:{SECRET}@h/db' }}\n",
        f"database = 'postgresql://u:{SECRET}@h/db'\n",
        f"database = 'postgresql://u:{SECRET}/{SECRET}@h/db'\n",
        f"database = 'host=h password={SECRET}'\n",
        f"[database]\ndsn = [{SECRET!r}]\n",
    ],
)
def test_a_dsn_of_a_wrong_kind_is_not_echoed(written: str, tmp_path: Path) -> None:
    (tmp_path / "mta.toml").write_text(written)
    with pytest.raises(BadInput) as caught:
        load_settings(tmp_path / "mta.toml", environment={})
    assert SECRET not in str(caught.value)


def test_a_fault_of_the_driver_that_quotes_a_password_is_redacted() -> None:
    dsn = "postgresql://u:a%2Fb@h/db?sslpassword=other"
    assert redact("cannot use 'a/b', a%2Fb and other", dsn) == "cannot use '***', *** and ***"


@given(st.text(max_size=60))
def test_whatever_is_given_ends_in_a_sentence_or_a_place(text: str) -> None:
    dsn = f"postgresql://{text}"
    with contextlib.suppress(BadInput):
        check_dsn(dsn, "here")
    place_of(dsn)
    redact(text, dsn)


def test_children_inherit_nothing_that_leads_to_the_database() -> None:
    environment = {"MTA_DATABASE_URL": "x", "PGPASSWORD": "x", "PGSERVICEFILE": "x", "PATH": "p", "MTA_CONFIG": "c"}
    assert without_database(environment) == {"PATH": "p", "MTA_CONFIG": "c"}
