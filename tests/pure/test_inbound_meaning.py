"""Whom a mail that came back is about, and what is believed of it."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.bounces import read_letter
from mta.failure.qualify import Qualifier
from mta.inbound.meaning import Meaning, Trust, meaning
from mta.inbound.spool import Stored
from mta.message.leaving import leaving_token, parse_leaving_token
from mta.message.verp import ReturnPathSigner, base36
from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status
from mta.settings.bounce_rules import load_bounce_rules
from mta.settings.config import load_settings
from tests.support.returning import absence, bounce, complaint

KEY = b"a key of the tests, of 32 octets"
NUMBER = 65_537
AT_S = 1_800_000_000.0
PATH = f"{ReturnPathSigner(KEY).local_part(base36(NUMBER))}@back.example"
FORGED = f"{ReturnPathSigner(b'another key, of 16 and more octets').local_part(base36(NUMBER))}@back.example"
TRUST = Trust(KEY, ("unsubscribe",), ("fbl",), ("192.0.2.0/24", "2001:db8::/32"))
MESSAGE_ID = f"{base36(NUMBER)}.{base36(17)}@shop.example"


@pytest.fixture(scope="module")
def qualifier() -> Qualifier:
    return Qualifier(load_bounce_rules(load_settings(None).failures.rules_files))


def of(qualifier: Qualifier, mail: bytes, *to: str, trust: Trust = TRUST, client: str = "198.51.100.7") -> Meaning:
    stored = Stored(list(to), "", client, AT_S)
    letter = read_letter(mail, is_of_feedback_loop=trust.is_of_feedback_loop(stored))
    return meaning(stored, letter, qualifier, trust)


def test_a_bounce_is_of_the_recipient_whose_path_it_was_sent_to(qualifier: Qualifier) -> None:
    found = of(qualifier, bounce("ann@example.com", "550 5.1.1 no such user here", "5.1.1"), PATH)
    assert (found.what, found.aside) == ("bounce", "")
    assert found.feedback is not None
    assert (found.feedback.number, found.feedback.status) == (NUMBER, Status.BOUNCED)
    assert found.feedback.at == datetime.datetime.fromtimestamp(AT_S, datetime.UTC)
    told = found.feedback
    assert (told.type, told.reason, told.category) == (FailureType.HARD, Reason.USER_UNKNOWN, Category.USER_UNKNOWN)
    assert (told.code, told.enhanced) == (550, "5.1.1")
    assert "no such user here" in told.reply


@pytest.mark.parametrize("to", [FORGED, "fbl@back.example", "", "b-1-@back.example"])
def test_a_bounce_that_nothing_signed_is_nobodys(qualifier: Qualifier, to: str) -> None:
    found = of(qualifier, bounce("ann@example.com", "550 5.1.1 no such user here", "5.1.1"), to)
    assert found == Meaning("bounce", aside="not-signed")


@pytest.mark.parametrize(
    ("mail", "what"),
    [
        (absence("ann@example.com"), "autoreply"),
        (bounce("ann@example.com", "450 4.2.0 busy", "4.4.1", "delayed"), "delayed"),
        (bounce("ann@example.com", "250 2.0.0 ok", "2.0.0", "delivered"), "delivered"),
        (complaint(PATH, "ann@example.com", "not-spam"), "no-complaint"),
        (complaint(PATH, "ann@example.com", "auth-failure"), "no-complaint"),
    ],
)
def test_what_is_no_failure_is_counted_and_no_more(qualifier: Qualifier, mail: bytes, what: str) -> None:
    assert of(qualifier, mail, PATH) == Meaning(what)


def test_a_complaint_is_believed_by_the_signed_path_in_what_it_returns(qualifier: Qualifier) -> None:
    found = of(qualifier, complaint(PATH, "ann@example.com"), "fbl@back.example")
    assert found.feedback is not None
    assert (found.feedback.number, found.feedback.status) == (NUMBER, Status.COMPLAINED)
    left = of(qualifier, complaint(PATH, "ann@example.com", "opt-out"), "fbl@back.example")
    assert left.feedback is not None
    assert left.feedback.status is Status.UNSUBSCRIBED
    assert of(qualifier, complaint(FORGED, "ann@example.com"), "fbl@back.example").aside == "not-signed"


@pytest.mark.parametrize(
    ("client", "is_believed"),
    [
        ("192.0.2.9", True),
        ("2001:db8::1", True),
        ("::ffff:192.0.2.9", True),
        ("192.0.3.9", False),
        ("imap:me@mail.example", False),
        ("", False),
    ],
)
def test_a_complaint_by_message_id_is_believed_of_a_feedback_loop(
    qualifier: Qualifier, client: str, is_believed: bool
) -> None:
    mail = complaint("redacted@path.example", "redacted").replace(
        b"Subject: Hello", b"Message-ID: <" + MESSAGE_ID.encode() + b">\r\nSubject: Hello"
    )
    found = of(qualifier, mail, "fbl@back.example", client=client)
    assert (found.feedback is not None) == is_believed
    assert found.aside == ("" if is_believed else "not-signed")
    if found.feedback is not None:
        assert (found.feedback.number, found.feedback.delivery) == (NUMBER, 17)


def test_a_complaint_is_believed_by_the_signed_path_in_its_own_fields(qualifier: Qualifier) -> None:
    mail = complaint("redacted@path.example", "redacted", "abuse")
    for field in (f"Original-Mail-From: <{PATH}>", f"Original-Mail-From: {PATH.upper()}"):
        reported = mail.replace(b"Original-Rcpt-To: <redacted>", field.encode())
        found = of(qualifier, reported, "fbl@back.example")
        assert found.feedback is not None
        assert (found.feedback.number, found.feedback.status) == (NUMBER, Status.COMPLAINED)
    forged = mail.replace(b"Original-Rcpt-To: <redacted>", f"Original-Mail-From: <{FORGED}>".encode())
    assert of(qualifier, forged, "fbl@back.example") == Meaning("complaint", aside="not-signed")


def test_a_complaint_with_our_message_id_is_believed_of_the_recipient_that_it_names(qualifier: Qualifier) -> None:
    mail = complaint("redacted@path.example", "ann@example.com").replace(
        b"Subject: Hello\r\n\r\nBuy", b"Message-ID: <" + MESSAGE_ID.encode() + b">\r\nSubject: Hello\r\n\r\nBuy"
    )
    found = of(qualifier, mail, "fbl@back.example")
    assert found.feedback is not None
    told = found.feedback
    assert (told.number, told.delivery, told.address) == (NUMBER, 17, "ann@example.com")
    nobody = mail.replace(b"Original-Rcpt-To: <ann@example.com>\r\n", b"")
    assert of(qualifier, nobody, "fbl@back.example") == Meaning("complaint", aside="not-signed")


WORDS = (
    "Stop paying too much for coats",
    "Re: Stop paying too much for coats",
    "unsubscribe",
    "Please remove me",
    "Your weekly spam report",
    "Read: Your weekly spam report",
    "abuse report",
    "Abmelden",
)


@pytest.mark.parametrize("subject", WORDS)
@pytest.mark.parametrize("to", [PATH, "postmaster@back.example", FORGED])
@pytest.mark.parametrize("header", ["", "Auto-Submitted: auto-generated\r\n", "Return-Path: <>\r\n"])
def test_words_neither_unsubscribe_nor_complain(qualifier: Qualifier, subject: str, to: str, header: str) -> None:
    text = f"Thank you, ticket 17 is open.\r\n\r\n> {subject}\r\n> unsubscribe\r\n"
    mail = f"{header}From: Ann <ann@example.com>\r\nTo: <{to}>\r\nSubject: {subject}\r\n\r\n{text}".encode()
    assert of(qualifier, mail, to).feedback is None
    assert of(qualifier, leaving(subject), to).feedback is None


def test_words_at_the_address_of_a_feedback_loop_are_a_complaint(qualifier: Qualifier) -> None:
    returned = f"Return-Path: <{PATH}>\r\nTo: ann@example.com\r\nSubject: Hello\r\n\r\nBuy!"
    mail = (
        f"From: staff@isp.example\r\nSubject: abuse report\r\nContent-Type: message/rfc822\r\n\r\n{returned}".encode()
    )
    found = of(qualifier, mail, "fbl@back.example")
    assert found.feedback is not None
    assert (found.feedback.number, found.feedback.status) == (NUMBER, Status.COMPLAINED)
    assert of(qualifier, mail, "postmaster@back.example").feedback is None


def leaving(subject: str, sender: str = "ann@example.com", text: str = "") -> bytes:
    return f"From: Ann <{sender}>\r\nTo: unsubscribe@back.example\r\nSubject: {subject}\r\n\r\n{text}\r\n".encode()


@pytest.mark.parametrize(
    ("to", "subject"),
    [
        ("unsubscribe@back.example", leaving_token(NUMBER, KEY)),
        (f"unsubscribe+{leaving_token(NUMBER, KEY)}@back.example", "unsubscribe"),
        ("Unsubscribe@back.example", f"please: {leaving_token(NUMBER, KEY).upper()} ok"),
    ],
)
def test_whoever_has_the_token_leaves(qualifier: Qualifier, to: str, subject: str) -> None:
    found = of(qualifier, leaving(subject), to)
    assert found.feedback is not None
    assert (found.feedback.number, found.feedback.status) == (NUMBER, Status.UNSUBSCRIBED)
    assert found.feedback.address == ""


def test_a_message_id_is_believed_of_its_recipient(qualifier: Qualifier) -> None:
    found = of(qualifier, leaving(MESSAGE_ID), "unsubscribe@back.example")
    assert found.feedback is not None
    told = found.feedback
    assert (told.number, told.delivery, told.address) == (
        NUMBER,
        17,
        "ann@example.com",
    )  # all three must be of one line


def test_who_only_says_so_is_believed_where_the_operator_wants_it(qualifier: Qualifier) -> None:
    mail = leaving("unsubscribe")
    assert of(qualifier, mail, "unsubscribe@back.example") == Meaning("unsubscription", aside="not-signed")
    found = of(qualifier, mail, "unsubscribe@back.example", trust=Trust(KEY, ("unsubscribe",), is_sender_believed=True))
    assert found.sender == "ann@example.com"
    assert found.aside == ""


def test_a_letter_is_somebodys_letter(qualifier: Qualifier) -> None:
    mail = b"From: Bob <bob@example.com>\r\nTo: postmaster@back.example\r\nSubject: A question\r\n\r\nWho are you?\r\n"
    assert of(qualifier, mail, "postmaster@back.example") == Meaning("other", aside="other")


def test_an_absence_sent_to_unsubscribe_unsubscribes_nobody(qualifier: Qualifier) -> None:
    token = leaving_token(NUMBER, KEY)
    assert of(qualifier, absence("ann@example.com"), f"unsubscribe+{token}@back.example").feedback is None


@given(st.binary(max_size=600), st.text(max_size=40), st.text(max_size=60))
def test_whatever_comes_nothing_is_made_up(mail: bytes, to: str, client: str) -> None:
    """Without our key nobody's outcome changes."""
    found = meaning(Stored([to], to, client, AT_S), read_letter(mail), Qualifier(()), TRUST)
    assert found.feedback is None or found.feedback.address


@given(st.text(max_size=80), st.text(max_size=300), st.sampled_from(WORDS), st.booleans())
def test_no_mail_to_a_return_path_denylists_anybody_without_a_token(
    subject: str, text: str, words: str, is_automatic: bool
) -> None:
    head = "Auto-Submitted: auto-replied\r\n" if is_automatic else ""
    mail = f"{head}From: ann@example.com\r\nSubject: {words} {subject}\r\n\r\n{words}\r\n{text}".encode(
        "utf-8", "replace"
    )
    stored = Stored([PATH], "", "192.0.2.9", AT_S)
    letter = read_letter(mail, is_of_feedback_loop=TRUST.is_of_feedback_loop(stored))
    found = meaning(stored, letter, Qualifier(()), TRUST).feedback
    assert found is None or found.status is Status.BOUNCED


@given(st.integers(0, (1 << 63) - 1))
def test_tokens_come_back(number: int) -> None:
    token = leaving_token(number, KEY)
    assert parse_leaving_token(f"<mailto:x+{token}@example.com>", KEY) == number
    assert parse_leaving_token(token, b"another key") is None
    assert parse_leaving_token(token.replace("u-", "b-"), KEY) is None


def test_a_key_is_not_shown() -> None:
    assert "octets" not in repr(TRUST)
