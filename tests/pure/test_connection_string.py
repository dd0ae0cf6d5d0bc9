"""Connection strings: every parameter of libpq is obeyed, or named as not supported."""

from __future__ import annotations

import pytest

from mta.model.errors import BadInput
from mta.queue.connection_string import CONNECT_TIMEOUT_S, Keepalive, parse_connection_string

BASE = "postgresql://ann@db.example:5433/mta"
# PostgreSQL 18, "Parameter Key Words", with a value that is valid there.
OF_LIBPQ = {
    "host": "h",
    "hostaddr": "192.0.2.1",
    "port": "5432",
    "dbname": "mta",
    "user": "ann",
    "password": "secret",
    "passfile": "/nowhere",
    "require_auth": "scram-sha-256",
    "channel_binding": "prefer",
    "connect_timeout": "5",
    "client_encoding": "auto",
    "options": "-c%20geqo=off",
    "application_name": "x",
    "fallback_application_name": "x",
    "keepalives": "1",
    "keepalives_idle": "60",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "replication": "false",
    "gssencmode": "disable",
    "sslmode": "prefer",
    "requiressl": "0",
    "sslnegotiation": "postgres",
    "sslcompression": "0",
    "sslcert": "/nowhere",
    "sslkey": "/nowhere",
    "sslkeylogfile": "/nowhere",
    "sslpassword": "secret",
    "sslcertmode": "allow",
    "sslrootcert": "/nowhere",
    "sslcrl": "/nowhere",
    "sslcrldir": "/nowhere",
    "sslsni": "1",
    "requirepeer": "postgres",
    "ssl_min_protocol_version": "TLSv1.2",
    "ssl_max_protocol_version": "TLSv1.3",
    "min_protocol_version": "3.0",
    "max_protocol_version": "latest",
    "krbsrvname": "postgres",
    "gsslib": "gssapi",
    "gssdelegation": "0",
    "scram_client_key": "a",
    "scram_server_key": "a",
    "service": "mail",
    "servicefile": "/nowhere",
    "target_session_attrs": "read-write",
    "load_balance_hosts": "disable",
    "oauth_issuer": "https://id.example",
    "oauth_client_id": "x",
    "oauth_client_secret": "x",
    "oauth_scope": "x",
}
NOT_SUPPORTED = {
    *(
        "require_auth",
        "requiressl",
        "sslkeylogfile",
        "sslcrldir",
        "requirepeer",
        "scram_client_key",
        "scram_server_key",
    ),
    *("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
}


@pytest.mark.parametrize("name", OF_LIBPQ)
def test_every_parameter_of_libpq_is_obeyed_or_named(name: str) -> None:
    text = f"{BASE}?{name}={OF_LIBPQ[name]}"
    if name in NOT_SUPPORTED:
        with pytest.raises(BadInput, match=f"{name}: is not supported"):
            parse_connection_string(text)
    else:
        parse_connection_string(text)


@pytest.mark.parametrize(
    "asked",
    [
        *("channel_binding=require", "gssencmode=require", "gssencmode=prefer1", "client_encoding=LATIN1"),
        *("load_balance_hosts=random", "replication=database", "sslcertmode=require", "sslsni=0"),
        *("min_protocol_version=3.2", "target_session_attrs=write", "keepalives=yes", "connect_timeout=soon"),
        *("keepalives_idle=1.5", "port=70000", "port=1,2", "statement_timeout=5s", "search_path=x", "nonsense"),
    ],
)
def test_what_cannot_be_done_is_named(asked: str) -> None:
    with pytest.raises(BadInput, match="database connection string"):
        parse_connection_string(f"{BASE}?{asked}")


def test_what_is_not_given_has_defaults_that_find_a_silent_server() -> None:
    found = parse_connection_string(BASE)
    assert (found.dsn, found.hosts) == (BASE, (("db.example", 5433),))
    assert (found.connect_timeout_s, found.keepalive) == (CONNECT_TIMEOUT_S, Keepalive())
    assert found.keepalive.is_on


def test_what_is_given_is_taken() -> None:
    found = parse_connection_string(
        f"{BASE}?connect_timeout=3&keepalives_idle=60&keepalives_interval=9&keepalives_count=2&tcp_user_timeout=1500"
        "&application_name=mine&fallback_application_name=other&sslmode=require&options=-c%20geqo%3Doff"
    )
    assert found.connect_timeout_s == 3
    assert found.keepalive == Keepalive(True, 60, 9, 2, 1500)
    assert found.application_name == "mine"
    assert found.dsn == f"{BASE}?sslmode=require&options=-c+geqo%3Doff"
    assert not parse_connection_string(f"{BASE}?keepalives=0").keepalive.is_on
    assert parse_connection_string(f"{BASE}?connect_timeout=0&tcp_user_timeout=0").connect_timeout_s == 10


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("postgresql://a:5433,b/mta", (("a", 5433), ("b", None))),
        ("postgresql://u:p%40w@a,b:6000/mta?target_session_attrs=read-write", (("a", None), ("b", 6000))),
        ("postgresql://[::1]:6000,[fe80::1%25eth0]/mta", (("::1", 6000), ("fe80::1%eth0", None))),
        ("postgresql:///mta?host=a,b&port=1,2", (("a", 1), ("b", 2))),
        ("postgresql:///mta?host=a,b&port=7", (("a", 7), ("b", 7))),
        ("postgresql:///mta?host=/run/postgresql", (("/run/postgresql", None),)),
        ("postgresql://%2Frun%2Fpostgresql/mta", (("/run/postgresql", None),)),
        ("postgresql://db.example/mta?hostaddr=192.0.2.1,192.0.2.2&port=7,8", (("192.0.2.1", 7), ("192.0.2.2", 8))),
        ("postgresql:///mta", ()),
        ("postgresql:///?service=mail", ()),
    ],
)
def test_hosts_are_tried_in_their_order(text: str, hosts: tuple[tuple[str, int | None], ...]) -> None:
    assert parse_connection_string(text).hosts == hosts


@pytest.mark.parametrize(
    "text", ["host=db.example dbname=mta", "mysql://db.example/mta", "", "postgresql://ann:hunter2/x@db.example/mta"]
)
def test_what_is_no_uri_is_refused_without_a_word_of_it(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_connection_string(text)
    assert "hunter" not in str(refused.value)
    assert "db.example" not in str(refused.value)


def test_it_shows_no_password() -> None:
    assert "secret" not in repr(parse_connection_string("postgresql://ann:secret@db.example/mta?password=secret"))
