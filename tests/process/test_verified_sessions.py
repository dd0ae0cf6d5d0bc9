"""Sessions in which a server must prove that it is the host: by an authority that is trusted, or by TLSA records."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trustme

from mta.model.timeouts import SessionTimeouts
from mta.session.open import OpenSession, SessionFailed, SessionTarget, TlsPolicy, open_session
from mta.session.tls import ssl_object
from mta.smtp.envelope import Stage
from tests.support.authorities import (
    HOST,
    Record,
    ca_file,
    certificate_of,
    expired,
    server_context,
    tlsa,
)
from tests.support.hostile_server import HostileServer, Peer, Play

QUICK = SessionTimeouts(connect_s=5, greeting_s=5, command_s=5)
Run = Callable[[Coroutine[Any, Any, None]], None]
ROOT = trustme.CA()
LEAF = ROOT.issue_cert(HOST)
STRANGER = trustme.CA()
UNUSABLE: Record = (1, 1, 1, bytes(32))


def offers(context: ssl.SSLContext | None, said: list[str] | None = None) -> Play:
    """A server that offers STARTTLS with this context, or (None) has it taken away; ``said``: what clients told it."""
    heard = [] if said is None else said

    async def play(peer: Peer) -> None:
        await peer.say("220 mx")
        heard.append((await peer.hear()).split(" ")[0])
        if context is None:
            await peer.say("250 mx")
            heard.append(await peer.hear())
        await peer.say("250-mx", "250 STARTTLS")
        heard.append(await peer.hear())
        if heard[-1] != "STARTTLS":
            return
        await peer.say("220 go")
        assert context is not None
        await peer.start_tls(context)
        heard.append((await peer.hear()).split(" ")[0])
        await peer.say("250 mx")
        heard.append(await peer.hear())

    return play


async def opened(
    server: HostileServer,
    tls: TlsPolicy = "verified",
    authorities: tuple[Record, ...] = (),
    trusted: str = "",
    mx_host: str = HOST,
) -> OpenSession:
    return await open_session(
        SessionTarget(
            mx_host,
            "127.0.0.1",
            "client.example.com",
            server.port,
            tls=tls,
            timeouts=QUICK,
            authorities=authorities,
            ca_file=trusted,
        )
    )


async def refused(server: HostileServer, **how: Any) -> SessionFailed:
    with pytest.raises(SessionFailed) as caught:
        await opened(server, **how)
    assert caught.value.stage is Stage.STARTTLS
    return caught.value


def is_resumed(session: OpenSession) -> bool:
    found = ssl_object(session.transport)
    assert found is not None
    session.discard()
    return bool(found.session_reused)


def test_a_certificate_of_a_trusted_authority_for_the_name_is_taken(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        trusted = ca_file(tmp_path, ROOT)
        async with HostileServer(offers(server_context(LEAF))) as server:
            session = await opened(server, trusted=trusted)
            assert session.is_tls
            assert not is_resumed(session)
            assert is_resumed(await opened(server, trusted=trusted))

    run(main())


@pytest.mark.parametrize(
    ("certificate", "why"),
    [
        (ROOT.issue_cert("other.example.test"), "Hostname mismatch"),
        (ROOT.issue_cert("*.test"), "Hostname mismatch"),
        (ROOT.issue_cert(common_name=HOST), "Hostname mismatch"),
        (expired(ROOT), "certificate has expired"),
        (STRANGER.issue_cert(HOST), "unable to get local issuer certificate"),
    ],
    ids=["other name", "wildcard too far", "common name only", "expired", "unknown authority"],
)
def test_any_other_certificate_ends_the_session_and_nothing_is_tried_instead(
    run: Run, tmp_path: Path, certificate: trustme.LeafCert, why: str
) -> None:
    async def main() -> None:
        said: list[str] = []
        async with HostileServer(offers(server_context(certificate), said)) as server:
            failed = await refused(server, trusted=ca_file(tmp_path, ROOT))
            assert failed.cause.startswith(f"4.7.5 the certificate of {HOST} is not trusted: {why}")
            assert failed.reply is None
            assert len(server.peers) == 1
            assert said == ["EHLO", "STARTTLS"]

    run(main())


def test_the_authorities_of_the_system_do_not_vouch_for_ours(run: Run) -> None:
    async def main() -> None:
        async with HostileServer(offers(server_context(LEAF))) as server:
            assert "is not trusted" in (await refused(server)).cause

    run(main())


def test_a_file_of_authorities_that_is_gone_ends_the_session(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with HostileServer(offers(server_context(LEAF))) as server:
            failed = await refused(server, trusted=str(tmp_path / "gone.pem"))
            assert failed.cause.startswith(f"4.7.5 {tmp_path / 'gone.pem'} cannot be used")

    run(main())


@pytest.mark.parametrize(
    "how",
    [
        {"tls": "verified"},
        {"tls": "required"},
        {"tls": "opportunistic", "authorities": (tlsa(3, 1, 1, certificate_of(LEAF)),)},
        {"tls": "opportunistic", "authorities": (UNUSABLE,)},
    ],
    ids=["verified", "required", "DANE", "DANE unusable"],
)
def test_who_takes_starttls_out_of_the_answer_gets_no_mail(run: Run, how: dict[str, Any]) -> None:
    async def main() -> None:
        said: list[str] = []
        async with HostileServer(offers(None, said)) as server:
            failed = await refused(server, **how)
            assert failed.cause == "4.7.4 STARTTLS is required and not offered"
            assert len(server.peers) == 1
            assert said == ["EHLO"]

    run(main())


def test_a_tls_session_that_nobody_verified_opens_no_other_door(run: Run, tmp_path: Path) -> None:
    """One context, one address, one name: only the proof differs."""

    async def main() -> None:
        trusted = ca_file(tmp_path, ROOT)
        record = tlsa(3, 1, 1, certificate_of(LEAF))
        async with HostileServer(offers(server_context(STRANGER.issue_cert(HOST)))) as server:
            assert not is_resumed(await opened(server, "opportunistic"))
            assert is_resumed(await opened(server, "required"))
            assert "is not trusted" in (await refused(server, trusted=trusted)).cause
            assert "fits no TLSA record" in (await refused(server, tls="required", authorities=(record,))).cause
        async with HostileServer(offers(server_context(LEAF))) as server:
            assert not is_resumed(await opened(server, trusted=trusted))
            assert not is_resumed(await opened(server, "opportunistic"))
            assert not is_resumed(await opened(server, authorities=(record,)))
            assert is_resumed(await opened(server, authorities=(record,)))
            assert (
                "fits no TLSA record"
                in (await refused(server, authorities=(tlsa(3, 1, 1, certificate_of(ROOT)),))).cause
            )

    run(main())


def test_tlsa_records_are_enough_whoever_issued_the_certificate(run: Run) -> None:
    async def main() -> None:
        old = expired(STRANGER, "quite.other.test")
        async with HostileServer(offers(server_context(old))) as server:
            record = tlsa(3, 1, 1, certificate_of(old))
            for policy in ("opportunistic", "required", "verified"):
                session = await opened(server, policy, (UNUSABLE, record))
                assert session.is_tls
                session.discard()

    run(main())


def test_an_authority_in_dns_vouches_for_the_name(run: Run) -> None:
    async def main() -> None:
        below = ROOT.create_child_ca()
        context = server_context(below.issue_cert(HOST))
        async with HostileServer(offers(context)) as server:
            assert (await opened(server, authorities=(tlsa(2, 0, 1, certificate_of(below)),))).is_tls
            assert (await opened(server, authorities=(tlsa(2, 0, 0, certificate_of(ROOT)),))).is_tls
            failed = await refused(
                server, authorities=(tlsa(2, 0, 1, certificate_of(below)),), mx_host="mx2.example.test"
            )
            assert "no matching subjectAltName" in failed.cause

    run(main())


def test_a_server_that_fits_no_record_gets_no_mail_in_any_other_way(run: Run) -> None:
    async def main() -> None:
        said: list[str] = []
        async with HostileServer(offers(server_context(LEAF), said)) as server:
            failed = await refused(server, tls="opportunistic", authorities=(tlsa(3, 1, 1, certificate_of(STRANGER)),))
            assert failed.cause == (
                f"4.7.5 the certificate of {HOST} fits no TLSA record: its certificate or key is another"
            )
            assert len(server.peers) == 1
            assert said == ["EHLO", "STARTTLS"]

    run(main())


def test_records_that_nobody_can_use_ask_for_tls_and_no_more(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with HostileServer(offers(server_context(STRANGER.issue_cert(HOST)))) as server:
            session = await opened(server, "opportunistic", (UNUSABLE,))
            assert session.is_tls
            session.discard()
            # Whoever wants the server verified is not content with that.
            trusted = ca_file(tmp_path, ROOT)
            assert "is not trusted" in (await refused(server, authorities=(UNUSABLE,), trusted=trusted)).cause

    run(main())
