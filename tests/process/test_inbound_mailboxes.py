"""Mailboxes that are read: real directories, and small servers of IMAP and POP3 on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from mta.inbound import mailboxes
from mta.inbound.mailboxes import MailboxReader
from mta.inbound.spool import Spool, read_stored
from mta.model.errors import BadInput
from mta.settings.inbound import AfterReading, MailboxKind, MailboxTable, MailboxTls
from tests.support.authorities import server_context
from tests.support.inbound import path_of
from tests.support.mailbox_servers import PASSWORD, USER, Imap, Mailbox, Pop3, serving
from tests.support.node import until
from tests.support.returning import bounce

OCTETS_MAX = 100_000
OURS = path_of(65_536)
BOUNCE = bounce("ann@example.com", "550 5.1.1 no such user", "5.1.1")
MAILS = [
    b"Delivered-To: " + OURS.encode() + b"\r\n" + BOUNCE,
    b"To: Some <a@example.com>, b@example.com\r\nSubject: two\r\n\r\n.a line with a dot\r\n..\r\n",
    b"Subject: large\r\n\r\n" + b"x" * OCTETS_MAX + b"\r\n",
    b"Subject: last\r\n\r\n\xff\r\n",
]
KEPT = [MAILS[0], MAILS[1], MAILS[3]]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool")
    with contextlib.closing(spool):
        yield spool


def kept(spool: Spool) -> list[bytes]:
    return [mail for path in sorted(spool.new.iterdir()) for _, mail in read_stored(path)]


def table(tmp_path: Path, kind: MailboxKind, port: int, **fields: Any) -> MailboxTable:
    password = tmp_path / "password"
    if not password.exists():
        password.write_text(PASSWORD + "\n")
        password.chmod(0o600)
    given = {"host": "127.0.0.1", "user": USER, "tls": MailboxTls.NO, **fields}
    return MailboxTable(kind, port=port, password_file=str(password), **given)


# --- directories ---------------------------------------------------------------------------------


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    path = tmp_path / "Maildir"
    for name in ("tmp", "new", "cur"):
        (path / name).mkdir(parents=True)
    for number, mail in enumerate(MAILS):
        (path / "new" / f"170000000{number}.M1P2.host").write_bytes(mail)
    (path / "tmp" / "half").write_bytes(b"half")
    return path


@pytest.mark.parametrize("after", AfterReading)
def test_a_maildir_is_read_and_marked(spool: Spool, maildir: Path, after: AfterReading) -> None:
    reader = MailboxReader(MailboxTable(MailboxKind.MAILDIR, str(maildir), after=after), spool, OCTETS_MAX)
    assert reader.look() == 3
    assert kept(spool) == KEPT
    assert list((maildir / "new").iterdir()) == []
    seen = sorted(path.name for path in (maildir / "cur").iterdir())
    # What is too large stays in any case.
    numbers = [0, 1, 2, 3] if after is AfterReading.SEEN else [2]
    assert seen == [f"170000000{number}.M1P2.host:2,S" for number in numbers]
    assert reader.look() == 0
    stored = [envelope for path in sorted(spool.new.iterdir()) for envelope, _ in read_stored(path)]
    assert OURS in stored[0].recipients
    assert stored[1].recipients == ["a@example.com", "b@example.com"]


def test_nothing_is_marked_that_is_not_kept(spool: Spool, maildir: Path) -> None:
    (spool.new.parent / "tmp").rename(spool.new.parent / "away")
    reader = MailboxReader(MailboxTable(MailboxKind.MAILDIR, str(maildir)), spool, OCTETS_MAX)
    with pytest.raises(OSError, match="No such file"):
        reader.look()
    assert len(list((maildir / "new").iterdir())) == len(MAILS)


# --- servers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", AfterReading)
def test_an_imap_mailbox_is_read_and_marked(spool: Spool, tmp_path: Path, after: AfterReading) -> None:
    box = Mailbox(MAILS)
    with serving(box, Imap) as port:
        reader = MailboxReader(table(tmp_path, MailboxKind.IMAP, port, after=after), spool, OCTETS_MAX)
        assert reader.look() == 3
        assert kept(spool) == KEPT
        assert reader.look() == 0
    assert set(box.mails) == ({1, 2, 3, 4} if after is AfterReading.SEEN else {3})
    assert all("\\Seen" in flags for flags in box.flags.values())


def test_a_pop3_mailbox_is_emptied(spool: Spool, tmp_path: Path) -> None:
    box = Mailbox(MAILS)
    with serving(box, Pop3) as port:
        reader = MailboxReader(table(tmp_path, MailboxKind.POP3, port, after=AfterReading.DELETE), spool, OCTETS_MAX)
        assert reader.look() == 3
        assert kept(spool) == KEPT
        assert reader.look() == 0
    assert set(box.mails) == {3}


@pytest.mark.parametrize(("kind", "handler"), [(MailboxKind.IMAP, Imap), (MailboxKind.POP3, Pop3)])
@pytest.mark.parametrize("tls", [MailboxTls.YES, MailboxTls.STARTTLS])
def test_over_tls_to_whom_the_authority_vouches_for(
    spool: Spool, tmp_path: Path, kind: MailboxKind, handler: type[Imap | Pop3], tls: MailboxTls
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    context = server_context(authority.issue_cert("127.0.0.1"))
    with serving(Mailbox(KEPT), handler, context, is_wrapped=tls is MailboxTls.YES) as port:
        fields = {"tls": tls, "after": AfterReading.DELETE}
        stranger = table(tmp_path, kind, port, ca_file=str(tmp_path / "other.pem"), **fields)
        with pytest.raises(OSError, match="certificate verify failed"):
            MailboxReader(stranger, spool, OCTETS_MAX).look()
        assert kept(spool) == []
        friend = table(tmp_path, kind, port, ca_file=str(tmp_path / "ca.pem"), **fields)
        assert MailboxReader(friend, spool, OCTETS_MAX).look() == 3


@pytest.mark.parametrize(
    ("kind", "handler", "fails_at"),
    [
        (MailboxKind.IMAP, Imap, "UID FETCH 2 (BODY"),
        (MailboxKind.IMAP, Imap, "UID STORE 2"),
        (MailboxKind.POP3, Pop3, "RETR 2"),
        (MailboxKind.POP3, Pop3, "QUIT"),
    ],
)
def test_a_connection_that_breaks_loses_nothing(
    spool: Spool, tmp_path: Path, kind: MailboxKind, handler: type[Imap | Pop3], fails_at: str
) -> None:
    box = Mailbox(KEPT)
    box.fails_at = fails_at
    with serving(box, handler) as port:
        reader = MailboxReader(table(tmp_path, kind, port, after=AfterReading.DELETE), spool, OCTETS_MAX)
        with pytest.raises(mailboxes.AWAY):
            reader.look()
        reader.look()
    assert set(kept(spool)) == set(KEPT)  # some twice: each counts once when it is recorded
    assert box.unseen() == []


@pytest.mark.parametrize(("kind", "handler"), [(MailboxKind.IMAP, Imap), (MailboxKind.POP3, Pop3)])
def test_a_wrong_password_is_said_and_not_shown(
    spool: Spool, tmp_path: Path, kind: MailboxKind, handler: type[Imap | Pop3]
) -> None:
    (tmp_path / "password").write_text("not this")
    (tmp_path / "password").chmod(0o600)
    with serving(Mailbox(KEPT), handler) as port:
        reader = MailboxReader(table(tmp_path, kind, port, after=AfterReading.DELETE), spool, OCTETS_MAX)
        with pytest.raises(mailboxes.AWAY, match="wrong password") as raised:
            reader.look()
    assert "not this" not in str(raised.value)


@pytest.mark.parametrize(("mode", "text"), [(0o644, PASSWORD), (0o620, PASSWORD), (0o600, ""), (0o600, "two\nlines")])
def test_a_password_file_that_others_read_or_that_has_none_is_refused(
    spool: Spool, tmp_path: Path, mode: int, text: str
) -> None:
    password = tmp_path / "password"
    password.write_text(text)
    password.chmod(mode)
    with serving(Mailbox(KEPT), Imap) as port, pytest.raises(BadInput, match="password"):
        MailboxReader(table(tmp_path, MailboxKind.IMAP, port), spool, OCTETS_MAX).look()


async def test_a_mailbox_that_is_away_is_tried_again(spool: Spool, tmp_path: Path) -> None:
    box = Mailbox(KEPT)
    box.fails_at = "LOGIN"
    stop_wanted = asyncio.Event()
    with serving(box, Imap) as port:
        reader = MailboxReader(table(tmp_path, MailboxKind.IMAP, port, every_s=0.05), spool, OCTETS_MAX)
        running = asyncio.create_task(reader.run(stop_wanted))
        await until("all are fetched", lambda: reader.fetched >= 3)
        stop_wanted.set()
        await running
    assert kept(spool) == KEPT
