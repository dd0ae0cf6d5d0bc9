"""MTA-STS records and policies as text (RFC 8461 §3.1, §3.2, §4.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.model.sts import MAX_AGE_S_MAX, POLICY_BYTES_MAX, BadPolicy, Mode, Policy, parse_policy, parse_record

POLICY = b"version: STSv1\nmode: enforce\nmx: mx1.example.test\nmx: *.example.net\nmax_age: 86400\n"


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([b"v=STSv1; id=20260101T000000;"], "20260101T000000"),
        ([b"v=STSv1;id=1"], "1"),
        ([b"v=STSv1 ; id=1 ;"], "1"),
        ([b"v=STSv1; x=y; id=7; id=8"], "7"),
        ([b"v=spf1 -all", b"v=STSv1; id=a"], "a"),
        ([], None),
        ([b"v=spf1 -all"], None),
        ([b"v=STSv1; id=a", b"v=STSv1; id=b"], None),
        ([b"v=STSv2; id=a"], None),
        ([b"v=STSv10; id=a"], None),
        ([b"v=STSv1"], None),
        ([b"v=STSv1;"], None),
        ([b"id=a; v=STSv1"], None),
        ([b"V=STSv1; id=a"], None),
        ([b"v=STSv1; id="], None),
        ([b"v=STSv1; id=a-b"], None),
        ([b"v=STSv1; id=" + b"a" * 33], None),
        ([b"v=STSv1; id=a; broken"], None),
        ([b"v=STSv1;; id=a"], None),
        ([b"v=STSv1; id=\xff"], None),
    ],
)
def test_a_record_counts_when_there_is_exactly_one_that_is_well_formed(texts: list[bytes], found: str | None) -> None:
    assert parse_record(texts) == found


def test_a_policy_is_read_with_either_line_end_and_unknown_fields_are_passed_over() -> None:
    wanted = Policy(Mode.ENFORCE, 86_400, ("mx1.example.test", "*.example.net"))
    assert parse_policy(POLICY) == wanted
    assert parse_policy(POLICY.replace(b"\n", b"\r\n")) == wanted
    assert parse_policy(POLICY.rstrip(b"\n") + b"  ") == wanted
    assert parse_policy(b"x-new: a:b c\n" + POLICY + b"mode: none\nmax_age: 1\nmx: MX1.example.test\n") == wanted


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (POLICY.replace(b"version: STSv1\n", b""), "no version"),
        (POLICY.replace(b"STSv1", b"STSv2"), "version 'STSv2'"),
        (POLICY.replace(b"mode: enforce\n", b""), "no mode"),
        (POLICY.replace(b"enforce", b"Enforce"), "unknown mode 'Enforce'"),
        (POLICY.replace(b"max_age: 86400\n", b""), "no max_age"),
        (POLICY.replace(b"86400", b"-1"), "max_age '-1'"),
        (POLICY.replace(b"86400", str(MAX_AGE_S_MAX + 1).encode()), "is not 0 to"),
        (POLICY.replace(b"86400", b"1e3"), "max_age '1e3'"),
        (b"version: STSv1\nmode: testing\nmax_age: 1\n", "names no host"),
        (POLICY.replace(b"*.example.net", b"*"), "line 4 of the policy: '*' is no host name"),
        (POLICY.replace(b"*.example.net", b"mx.*.net"), "line 4"),
        (POLICY.replace(b"*.example.net", b"m*.example.net"), "line 4"),
        (POLICY.replace(b"*.example.net", b"*.*.net"), "line 4"),
        (POLICY.replace(b"*.example.net", b".example.net"), "line 4"),
        (POLICY.replace(b"*.example.net", b"-a.example.net"), "line 4"),
        (POLICY.replace(b"mx: *", b"mx *"), "line 4 of the policy is no key and value"),
        (b"<html>\n", "line 1 of the policy is no key and value"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "no version"),
        (POLICY + b"#" * POLICY_BYTES_MAX, "larger than 65,536"),
        (POLICY + b"".join(b"mx: a%d.test\n" % n for n in range(1000)), "more than 1,000 hosts"),
    ],
)
def test_what_is_no_policy_is_refused_with_the_reason(octets: bytes, said: str) -> None:
    with pytest.raises(BadPolicy, match=said.replace("*", r"\*")):
        parse_policy(octets)


def test_a_policy_of_mode_none_needs_no_host() -> None:
    assert parse_policy(b"version: STSv1\nmode: none\nmax_age: 0") == Policy(Mode.NONE, 0)


def test_a_wildcard_stands_for_one_whole_label() -> None:
    policy = parse_policy(POLICY)
    assert policy.names("mx1.example.test")
    assert policy.names("a.example.net")
    for name in ("mx2.example.test", "a.mx1.example.test", "example.net", "a.b.example.net", "net", ""):
        assert not policy.names(name), name


@given(st.binary(max_size=300))
def test_any_octets_are_a_policy_or_a_reason(octets: bytes) -> None:
    try:
        policy = parse_policy(octets)
    except BadPolicy:
        return
    assert policy.mode is Mode.NONE or policy.hosts


@given(st.lists(st.binary(max_size=80), max_size=3))
def test_any_octets_are_a_record_or_none(texts: list[bytes]) -> None:
    found = parse_record(texts)
    assert found is None or found.isalnum()
