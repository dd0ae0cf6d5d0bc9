from __future__ import annotations

import pytest

from mta.smtp.extensions import Extensions, parse_ehlo

CASES = [
    ([], Extensions()),
    (["mx.example.test"], Extensions()),
    (["PIPELINING"], Extensions()),  # the first line is the greeting, whatever it says
    (["mx", "PIPELINING"], Extensions(pipelining=True)),
    (["mx", "pipelining", " 8bitMIME "], Extensions(pipelining=True, eight_bit_mime=True)),
    (["mx", "SIZE"], Extensions(size_max=0)),
    (["mx", "SIZE 0"], Extensions(size_max=0)),
    (["mx", "SIZE 35882577"], Extensions(size_max=35882577)),
    (["mx", "SIZE -1", "CHUNKING"], Extensions(chunking=True)),
    (["mx", "SIZE ten", "CHUNKING"], Extensions(chunking=True)),
    (["mx", "SIZE " + "9" * 30], Extensions()),
    (["mx", "SIZE=1000"], Extensions()),
    (["mx", "SIZE 1", "SIZE 2"], Extensions(size_max=2)),
    (["mx", "-CHUNKING", "=", "", "\x00", "DSN"], Extensions(dsn=True)),
    (["mx", "PIPELINING of a kind"], Extensions(pipelining=True)),
    (["mx", "AUTH LOGIN PLAIN", "STARTTLS"], Extensions(starttls=True)),
    (["mx", "ENHANCEDSTATUSCODES", "SMTPUTF8"], Extensions(enhanced_status_codes=True, smtputf8=True)),
    (["mx", "LIMITS RCPTMAX=20 MAILMAX=5 RCPTDOMAINMAX=1"], Extensions(rcpt_max=20, mail_max=5, rcpt_domain_max=1)),
    (["mx", "LIMITS RCPTMAX=20 RCPTDOMAINMAX=0"], Extensions()),
    (["mx", "LIMITS RCPTMAX=20 FUTURE=x/y"], Extensions(rcpt_max=20)),
    (["mx", "LIMITS RCPTMAX=0", "DSN"], Extensions(dsn=True)),
    (["mx", "LIMITS RCPTMAX=20 MAILMAX=many"], Extensions()),
    (["mx", "LIMITS RCPTMAX=20 junk"], Extensions()),
    (["mx", "LIMITS rcptmax=20"], Extensions()),
    (["mx", "LIMITS"], Extensions()),
]


@pytest.mark.parametrize(("lines", "expected"), CASES)
def test_bad_syntax_of_a_keyword_costs_that_keyword_only(lines: list[str], expected: Extensions) -> None:
    assert parse_ehlo(lines) == expected
