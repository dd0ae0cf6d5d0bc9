"""The real SpamAssassin, without the network: which of its rules a message meets, and what each of them scores."""

from __future__ import annotations

import asyncio
import email
import email.policy
import shutil
from email.utils import formatdate
from pathlib import Path
from typing import Final

import pytest

PROGRAM: Final = shutil.which("spamassassin")
needs_spamassassin: Final = pytest.mark.skipif(
    PROGRAM is None, reason="spamassassin is not installed (Debian: spamassassin), so no message is judged by it"
)
# -L: no network. -x: no preferences of a user. No word of a test teaches it anything, nor is anything remembered.
_OPTIONS: Final = ("-L", "-x", "--cf=use_bayes 0", "--cf=add_header all Scores _TESTSSCORES(,)_")


def as_received(message: bytes, mail_from: str, recipient: str, unix_s: float) -> bytes:
    """``message`` as the receiving server stores it: rules about time hold the Date against its trace."""
    trace = (
        f"Return-Path: <{mail_from}>\r\n"
        "Received: from mta.shop.example (mta.shop.example [203.0.113.9])\r\n"
        "\tby mx.example.com (Postfix) with ESMTPS id 4X1Y2Z\r\n"
        f"\tfor <{recipient}>; {formatdate(unix_s)}\r\n"
    )
    return (trace.encode() + message).replace(b"\r\n", b"\n")


async def scores(message: bytes, home: Path) -> dict[str, float]:
    """Points by rule, of a stored message (lines end in LF). ``home``: where it may write."""
    assert PROGRAM is not None
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *_OPTIONS,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    judged, said = await process.communicate(message)
    assert process.returncode == 0, said.decode()
    told = str(email.message_from_bytes(judged, policy=email.policy.default)["X-Spam-Scores"])
    return {rule: float(points) for rule, _, points in (one.strip().partition("=") for one in told.split(","))}
