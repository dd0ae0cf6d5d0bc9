"""Mail that came back, of our own making, in the forms in which it comes: kind, whom it is about, what it says."""

from __future__ import annotations

import base64
import quopri
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.bounces import Kind, read_letter
from mta.bounces.charsets import text_of
from mta.bounces.mime import FIELD_BYTES, _bounded, opened
from tests.support.returning import absence, bounce, complaint

HEAD = "From: Mail Delivery System <MAILER-DAEMON@mx.example.net>\nTo: return@shop.example\n"
RETURNED = (
    "\n\n------ This is a copy of the message, including all the headers. ------\n\n"
    "From: shop@shop.example\nTo: other@d.example\n"
)


def letter(subject: str, text: str, more: str = "") -> bytes:
    return f"{HEAD}Subject: {subject}\n{more}\n{text}".encode()


PLAIN = {
    "a colon, and the reason below": (
        "failure notice",
        "Hi. This is a program at mx.example.net.\nI could not deliver your message to:\n\n"
        "<ann@d.example>:\n192.0.2.1 does not like the recipient.\nRemote host said: 550 5.1.1 no such user\n",
        (550, "5.1.1"),
    ),
    "an indented address": (
        "Mail delivery failed: returning message to sender",
        "A message could not be delivered to one or more of its\nrecipients. The following address(es) failed:\n\n"
        "  ann@d.example\n    SMTP error from remote mail server after RCPT TO:<ann@d.example>:\n"
        "    host mx.d.example [192.0.2.1]: 550 5.1.1 User unknown\n" + RETURNED,
        (550, "5.1.1"),
    ),
    "a transcript": (
        "Returned mail: see transcript for details",
        "   ----- The following addresses had permanent fatal errors -----\n<ann@d.example>\n"
        "    (reason: 550 5.1.1 <ann@d.example>... User unknown)\n\n   ----- Transcript of session follows -----\n"
        "... while talking to mx.d.example.:\n>>> RCPT To:<ann@d.example>\n"
        "<<< 550 5.1.1 <ann@d.example>... User unknown\n",
        (550, "5.1.1"),
    ),
    "a reason before the address": (
        "Undeliverable: Hello",
        "Your message\n\n  To:      list@other.example\n  Subject: Hello\n\n"
        "did not reach the following recipient(s):\n\nann@d.example on Mon, 4 Jan 2027\n"
        "    The recipient name is not recognized\n",
        (0, ""),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_bounces_in_their_own_words(name: str) -> None:
    subject, text, codes = PLAIN[name]
    found = read_letter(letter(subject, text))
    assert found.kind is Kind.BOUNCE
    (recipient,) = found.recipients
    assert recipient.address == "ann@d.example"
    assert (recipient.evidence.code, recipient.evidence.enhanced) == codes


@pytest.mark.parametrize(
    ("diagnostic", "text"),
    [("", "It did not work. each host was tried"), ("smtp; 550 Everything is lost", "Everything is lost")],
)
def test_a_reason_in_parentheses_counts_where_there_is_no_other(diagnostic: str, text: str) -> None:
    fields = "Final-Recipient: rfc822; ann@d.example\nAction: failed\nStatus: 5.1.2 (each host was tried)\n"
    fields += f"Diagnostic-Code: {diagnostic}\n" if diagnostic else ""
    [one] = read_letter(report("message/delivery-status", f"Reporting-MTA: dns; mx.example\n\n{fields}")).recipients
    assert one.evidence.text == text


def test_advice_is_no_reason() -> None:
    text = (
        "Your mail could not be delivered. The usual cause of this is an address that does not exist.\n\n"
        "Delivery to ann@d.example failed with error: SMTP error {}: mx.d.example said: {}\n"
    )
    [one] = read_letter(letter("Undelivered mail", text.format(451, "the disk is broken"))).recipients
    assert (one.address, one.evidence.code) == ("ann@d.example", 451)
    assert "cause" not in one.evidence.text


@pytest.mark.parametrize("subject", ["The subject of the message is: {}", "  Subject:  {}", "Betreff: {}"])
def test_the_subject_that_a_report_tells_is_its_senders_word(subject: str) -> None:
    told = subject.format("No such user? Relaying denied!")
    text = f"Your mail could not be delivered to:\n\n  ann@d.example\n\n{told}\n"
    [one] = read_letter(letter("Undelivered mail", text)).recipients
    assert "user" not in one.evidence.text
    assert "could not be delivered" in one.evidence.text


def test_a_warning_may_say_first_what_is_delayed() -> None:
    text = "DELAYS IN DELIVERY\n\nYour mail has been delayed.\n\n<ann@d.example>:\n <<< 451 4.3.0 Not now\n"
    found = read_letter(letter("WARNING: delayed mail", text))
    assert [(one.address, one.is_delayed) for one in found.recipients] == [("ann@d.example", True)]


def test_the_returned_message_begins_with_any_field_of_its_trace() -> None:
    text = "It could not be delivered to:\n\nann@d.example: 550 5.1.1 No such user\n\n"
    text += "Authentication-Results: mx.example.net; spf=fail\nReceived: from a.example\nTo: bob@d.example\n"
    [one] = read_letter(letter("Undelivered mail", text)).recipients
    assert "spf" not in one.evidence.text


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        (
            "  ann@d.example\n    SMTP error from remote mail server after end of data:\n    host mx: 550 No user\n",
            "dot",
        ),
        ("  ann@d.example\n    The server answered after EHLO mx.example.net:\n    550 Refused\n", "ehlo"),
        ("<ann@d.example>\n\n--- server message\n550 No such user\n\n--- SMTP command\nDATA\n", "data"),
        ("<ann@d.example>\n\n550 No such user\n\nIt comes after RCPT or after DATA, we cannot say.\n", ""),
    ],
)
def test_the_stage_stands_beside_the_reply_or_anywhere_when_it_is_the_only_one(text: str, stage: str) -> None:
    [one] = read_letter(letter("failure notice", "It could not be delivered to:\n\n" + text)).recipients
    assert (one.evidence.code, one.evidence.stage) == (550, stage)


@pytest.mark.parametrize(
    ("remote", "host"),
    [
        ("dns; mx.d.example", "mx.d.example"),
        ("dns; [192.0.2.1]", "d.example"),
        ("192.0.2.1", "d.example"),
        ("", "d.example"),
    ],
)
def test_where_no_host_is_named_the_domain_stands_for_it(remote: str, host: str) -> None:
    fields = "Final-Recipient: rfc822; ann@D.example\nAction: failed\nStatus: 5.0.0\n"
    fields += f"Remote-MTA: {remote}\n" if remote else ""
    [one] = read_letter(report("message/delivery-status", f"Reporting-MTA: dns; mx.example.net\n\n{fields}")).recipients
    assert one.evidence.provider == host


def test_a_report_of_several_recipients_has_one_for_each() -> None:
    blocks = "\r\n\r\n".join(
        f"Final-Recipient: rfc822; {name}@d.example\r\nAction: {action}\r\nStatus: {status}\r\n"
        f"Diagnostic-Code: smtp; {text}"
        for name, action, status, text in (
            ("ann", "failed", "5.1.1", "550 5.1.1 no such user"),
            ("bob", "delayed", "4.4.1", "450 4.4.1 host is down for now"),
            ("cas", "delivered", "2.0.0", "250 ok, taken"),
        )
    )
    mail = bounce("x@d.example", "550 5.1.1 no", "5.1.1").decode()
    start, end = mail.index("Final-Recipient"), mail.index("\r\n\r\n--=b\r\nContent-Type: text/rfc822-headers")
    found = read_letter((mail[:start] + blocks + mail[end:]).encode())
    assert [(one.address, one.is_delayed) for one in found.recipients] == [
        ("ann@d.example", False),
        ("bob@d.example", True),
    ]


def test_what_is_returned_decides_nothing() -> None:
    inner = bounce("victim@d.example", "550 5.1.1 no such user", "5.1.1").decode()
    mail = letter(
        "Mail delivery failed",
        "The following address failed:\n\n  ann@d.example\n    550 5.2.2 mailbox full" + RETURNED + inner,
    )
    assert [one.address for one in read_letter(mail).recipients] == ["ann@d.example"]


def test_an_absence_is_no_bounce_whatever_it_quotes() -> None:
    assert read_letter(absence("ann@d.example")).kind is Kind.AUTOREPLY


@pytest.mark.parametrize(
    ("subject", "more"),
    [
        ("Abwesenheitsnotiz: Hallo", ""),
        ("Réponse automatique : bonjour", ""),
        ("Re: Hello", "Auto-Submitted: auto-replied (vacation)\n"),
        ("Re: Hello", "Precedence: auto_reply\n"),
        ("Please confirm your message", ""),
    ],
)
def test_automatic_answers_are_known(subject: str, more: str) -> None:
    text = "Please confirm that you are human, and your message will be delivered."
    mail = f"From: ann@d.example\nTo: x@shop.example\nSubject: {subject}\n{more}\n{text}\n".encode()
    assert read_letter(mail).kind is Kind.AUTOREPLY


def test_complaints_name_their_kind_and_whom() -> None:
    found = read_letter(complaint("b-1-00@shop.example", "ann@d.example", "fraud"))
    assert (found.kind, found.feedback_type) == (Kind.FEEDBACK, "fraud")
    assert [one.address for one in found.recipients] == ["ann@d.example"]
    assert found.returned["return-path"] == "<b-1-00@shop.example>"


@pytest.mark.parametrize("subject", ["Hello", "Your order", "Meeting notes"])
def test_mail_between_people_is_no_bounce(subject: str) -> None:
    head = f"From: ann@d.example\nTo: bob@e.example\nSubject: {subject}\n\n"
    mail = f"{head}Hello Bob, shall we meet on Monday? Ann\n".encode()
    assert read_letter(mail).kind is Kind.NOT_BOUNCE


@pytest.mark.parametrize(
    "mail",
    [
        b"",
        b"\x00" * 1_000,
        b"\xff\xfe" * 100_000,
        b"Subject: x\n\n" + b"a@b.example " * 200_000,
        b"Content-Type: multipart/mixed; boundary=x\n\n"
        + b"--x\nContent-Type: multipart/mixed; boundary=x\n\n" * 5_000,
        b"From: MAILER-DAEMON\nSubject: failed\n\n" + b"<" * 100_000,
        b"From: MAILER-DAEMON\nSubject: failed\n\n" + b" to" * 100_000,
        b"X: y\n" * 100_000,
        b"Content-Type: text/html\n\n" + b"<a " * 100_000,
        b"Subject: " + b"=?utf-8?B?" * 20_000 + b"\n\n",
        b'{"notificationType":' * 10_000,
        b"Subject: failure notice\nContent-Type: text/plain; charset=no-such\n\n<ann@d.example>: 550 \xe9\n",
    ],
)
def test_nothing_raises_or_takes_long(mail: bytes) -> None:
    began_s = time.process_time()
    read_letter(mail)
    assert time.process_time() - began_s < 5  # far above what it takes; a square would take minutes


def test_a_report_of_very_many_recipients_is_read_once_not_once_for_each() -> None:
    names = [f"u{number}@d.example" for number in range(900)]
    blocks = "\r\n\r\n".join(f"Final-Recipient: rfc822; {name}\r\nAction: failed\r\nStatus: 5.1.1" for name in names)
    words = "\r\n".join(f"<{name}>: 550 no such user" for name in names)
    mail = bounce("x@d.example", "", "5.1.1").decode().replace("It did not work.", words)
    start, end = mail.index("Final-Recipient"), mail.index("\r\n\r\n--=b\r\nContent-Type: text/rfc822-headers")
    began_s = time.process_time()
    found = read_letter((mail[:start] + blocks + mail[end:]).encode())
    assert time.process_time() - began_s < 5  # it takes a fraction of one; once for each it was 48
    assert [one.address for one in found.recipients] == names
    assert {one.evidence.code for one in found.recipients} == {550}


def test_a_report_behind_a_large_attachment_is_found() -> None:
    mail = bounce("ann@d.example", "550 5.1.1 no such user", "5.1.1").decode()
    filler = "--=b\r\nContent-Type: application/octet-stream\r\n\r\n" + "A" * 76 + ("\r\n" + "A" * 76) * 8_000
    first, _, rest = mail.partition("--=b\r\nContent-Type: message/delivery-status")
    large = f"{first}{filler}\r\n--=b\r\nContent-Type: message/delivery-status{rest}".encode()
    assert len(large) > 600_000
    assert [one.address for one in read_letter(large).recipients] == ["ann@d.example"]


def test_a_broken_charset_and_a_mailbox_line_are_read_over() -> None:
    mail = b"From ann Mon Jan  4 00:00:00 2027\nSubject: =?no-such?Q?caf=E9?=\nFrom: x@d.example\n\n\xe9\n"
    assert opened(mail).headers["from"] == "x@d.example"


def test_a_boundary_of_any_length_costs_no_pattern_of_its_length() -> None:
    """The parser of the standard library compiles a pattern of it: a second for 260 KB."""
    folded = b"\r\n".join([b' boundary="', *[b" ." * 500] * 500, b'"'])
    mail = (
        b"From: MAILER-DAEMON@mx.example\r\nContent-Type: multipart/report;" + folded + b"\r\n\r\nIt did not work.\r\n"
    )
    assert max(len(field) for field in _bounded(mail).split(b"\n\n")[0].split(b"\nContent-")) <= FIELD_BYTES
    assert read_letter(mail).kind is Kind.NOT_BOUNCE


def test_a_mail_of_very_many_boundaries_is_read_as_text_however_they_are_written() -> None:
    parts = b"".join(b'--x\nContent-Type: multipart/mixed; boundary*0="b%d"\n\n' % number for number in range(60))
    assert _bounded(b"Subject: hello\n\n" + parts).startswith(b"Subject:")
    assert not _bounded(b"Subject: hello\nX-Other: 1\n\n" + parts).partition(b"\n\n")[0].count(b"X-Other")


@pytest.mark.parametrize(
    ("charset", "text", "encoding"),
    [
        ("gb2312", "用户不存在，邮箱镕", "gbk"),
        ("shift_jis", "宛先不明①髙", "cp932"),
        ("ks_c_5601-1987", "수신자가 존재하지 않습니다 뷁", "cp949"),
        ("iso-2022-kr", "수신자", "iso2022_kr"),
        ("iso-2022-jp", "宛先不明", "iso2022_jp"),
        ("iso-8859-1", "“unzustellbar” – 5 €", "cp1252"),
        ("us-ascii", "Empfänger unbekannt", "utf-8"),
        ("iso-8859-1", "Empfänger unbekannt", "utf-8"),
        ("x-unknown", "Empfänger unbekannt", "utf-8"),
        ("", "Empfänger unbekannt", "cp1252"),
        ("unicode_escape", r"a\x41", "ascii"),
        ("base64", "plain", "ascii"),
    ],
)
def test_a_charset_is_what_mail_programs_mean_by_its_name(charset: str, text: str, encoding: str) -> None:
    assert text_of(text.encode(encoding), charset) == text


def test_a_character_that_is_outside_costs_itself_and_not_the_text() -> None:
    assert text_of("用户".encode("gbk") + b"\xff" + "不存在".encode("gbk"), "gb2312") == "用户\ufffd不存在"


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_octets_in_any_charset_are_some_text(octets: bytes, charset: str) -> None:
    assert isinstance(text_of(octets, charset), str)


def report(kind: str, body: str, encoding: str = "8bit", boundary: str = "=b", declared: str = "=b") -> bytes:
    encoded = body.encode()
    if encoding == "base64":
        encoded = base64.encodebytes(encoded)
    elif encoding == "quoted-printable":
        encoded = quopri.encodestring(encoded)
    head = "From: mailer-daemon@mx.example\nSubject: Undelivered\nMIME-Version: 1.0"
    head = f'{head}\nContent-Type: multipart/report; boundary="{declared}"'
    text = f"--{boundary}\nContent-Type: text/plain\n\nIt did not work.\n"
    part = f"--{boundary}\nContent-Type: {kind}\nContent-Transfer-Encoding: {encoding}\n\n"
    return f"{head}\n\n{text}\n{part}".encode() + encoded + f"\n--{boundary}--\n".encode()


STATUS = (
    "Reporting-MTA: dns; mx.example\n\nFinal-Recipient: {}\nAction: failed\nStatus: 5.1.1\n"
    "Diagnostic-Code: smtp; 550 5.1.1 no such user\n"
)


@pytest.mark.parametrize("encoding", ["8bit", "base64", "quoted-printable"])
@pytest.mark.parametrize("kind", ["message/delivery-status", "message/global-delivery-status"])
@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("rfc822; ann@d.example", "ann@d.example"),
        ("utf-8; günther@bücher.example", "günther@bücher.example"),
        (r"utf-8; g\x{FC}nther@d.example", "günther@d.example"),
        ("rfc822;<ann=x@d.example>", "ann=x@d.example"),
    ],
)
def test_a_report_is_read_however_it_is_encoded(kind: str, encoding: str, written: str, address: str) -> None:
    found = read_letter(report(kind, STATUS.format(written), encoding))
    assert found.kind is Kind.BOUNCE
    assert [(one.address, one.evidence.enhanced) for one in found.recipients] == [(address, "5.1.1")]


def test_a_report_whose_boundary_is_not_the_one_declared_is_read_all_the_same() -> None:
    found = read_letter(report("message/delivery-status", STATUS.format("rfc822; ann@d.example"), boundary="=other"))
    assert [(one.address, one.evidence.code) for one in found.recipients] == [("ann@d.example", 550)]


@pytest.mark.parametrize("encoding", ["8bit", "base64", "quoted-printable"])
def test_an_encoded_report_that_it_is_no_spam_is_no_complaint(encoding: str) -> None:
    fields = "Feedback-Type: not-spam\nVersion: 1\nUser-Agent: x\n"
    found = read_letter(report("message/feedback-report", fields, encoding))
    assert (found.kind, found.feedback_type) == (Kind.FEEDBACK, "not-spam")


@pytest.mark.parametrize(
    ("diagnostic", "code", "text"),
    [
        ("x-unix; 255", 0, ""),
        ("smtp; 220 mx.example ESMTP 421 4.7.0 too many connections", 421, "too many connections"),
        ("smtp; 250 2.1.5 ok 550 5.1.1 no such user", 550, "no such user"),
        ("smtp; 250 2.1.5 ok", 0, ""),
        ("smtp; 550 5.1.1 no such user", 550, "no such user"),
    ],
)
def test_what_failed_did_not_succeed_whatever_was_said_before(diagnostic: str, code: int, text: str) -> None:
    mail = bounce("ann@d.example", "", "5.0.0").replace(b"smtp; ", diagnostic.encode())
    [found] = read_letter(mail).recipients
    assert found.evidence.code == code
    assert text in found.evidence.text
    assert not found.evidence.enhanced.startswith("2.")
