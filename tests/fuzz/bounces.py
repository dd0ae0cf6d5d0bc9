"""Mutated mails and replies through everything that reads them: ``python -m tests.fuzz.bounces --minutes 10``.

Each run says its seed; ``--seed`` plays it again. A fault is an exception, more than a second for one input, or memory
that grows. What it found is printed as a Python literal.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time

from mta.bounces import Kind, read_letter
from mta.failure.normalise import normalise
from mta.failure.qualify import Qualifier
from mta.failure.reply_text import parse_reply_text
from mta.model.failure import FailureType
from mta.settings.bounce_rules import load_bounce_rules
from tests.support.returning import absence, bounce, complaint

SLOW_S = 1.0
GROWTH_KB_MAX = 300_000
PIECES = (
    b"\r\n\r\n",
    b"\n",
    b"--=b\r\n",
    b"--=b--",
    b"Content-Type: message/delivery-status\r\n\r\n",
    b'boundary="=b"',
    b'Content-Type: multipart/mixed; boundary="=b"\r\n\r\n',
    b"Content-Transfer-Encoding: base64\r\n",
    b"=?utf-8?B?",
    b"?=",
    b"Final-Recipient: rfc822; ",
    b"Action: failed\r\n",
    b"Status: 5.1.1\r\n",
    b"Diagnostic-Code: smtp; 550 5.1.1 no\r\n",
    b"charset=utf-16",
    b'charset="\xff"',
    b"550 5.1.1 <",
    b">>> RCPT TO:<",
    b"a@b.example",
    b"@",
    b"<",
    b">",
    b"\x00",
    b"\xff\xfe",
    b"Received: by x\r\n",
    b"Content-Type: message/rfc822\r\n\r\n",
    b'{"notificationType":"Bounce"',
    b"}",
    b"<style>",
    b"<!--",
    b"From: MAILER-DAEMON\r\n",
    b"Subject: ",
    b"x" * 2_000,
    b"5" * 500,
    b" ." * 500,
    b"(" * 300,
    b"\r\n " * 300,
)


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A few edits of a sample: pieces put in, cut out, doubled, swapped with another sample, octets changed."""
    mail = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 12)):
        at = rng.randint(0, len(mail))
        match rng.randrange(6):
            case 0:
                mail[at:at] = rng.choice(PIECES)
            case 1:
                del mail[at : at + rng.randint(1, 200)]
            case 2:
                mail[at:at] = mail[at : at + rng.randint(1, 400)]
            case 3:
                other = rng.choice(seeds)
                cut = rng.randint(0, len(other))
                mail[at:] = other[cut:]
            case 4 if at < len(mail):
                mail[at] = rng.randrange(256)
            case _:
                mail[at:at] = rng.choice(PIECES) * rng.choice((1, 2, 50, 2_000))
    return bytes(mail[: 4 << 20])


def check(mail: bytes, qualifier: Qualifier) -> None:
    """Raises AssertionError, or whatever the code raises."""
    began_s = time.process_time()
    letter = read_letter(mail)
    for recipient in letter.recipients[:20]:
        verdict = qualifier.qualify(recipient.evidence)
        is_temporary = 400 <= recipient.evidence.code < 500 or recipient.evidence.enhanced.startswith("4.")
        assert not (is_temporary and verdict.type is FailureType.HARD), "hard on a temporary failure"
        normalise(recipient.evidence.text)
    assert letter.kind is not Kind.BOUNCE or letter.recipients, "a bounce is of somebody, if only of nobody known"
    qualifier.qualify(parse_reply_text(mail[:5_000].decode("latin-1")))
    took_s = time.process_time() - began_s
    assert took_s < SLOW_S, f"took {took_s:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    rng = random.Random(seed)
    qualifier = Qualifier(load_bounce_rules())
    seeds = [
        bounce("ann@d.example", "550 5.1.1 no such user", "5.1.1"),
        bounce("ann@d.example", "452 4.2.2 full", "4.2.2", "delayed"),
        complaint("b-1-0123456789abcdef@back.example", "ann@d.example"),
        absence("ann@d.example"),
        b"From: MAILER-DAEMON\r\nSubject: failure notice\r\n\r\nHi.\r\n<ann@d.example>:\r\n550 no\r\n",
    ]
    end_s = time.monotonic() + options.minutes * 60
    done = 0
    began_kb = 0
    while time.monotonic() < end_s:
        mail = mutated(rng, seeds)
        try:
            check(mail, qualifier)
        except Exception as error:
            print(f"input {done}: {type(error).__name__}: {error}\n{mail!r}", flush=True)
            return 1
        done += 1
        if done == 2_000:
            began_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if done % 20_000 == 0:
            print(f"{done} inputs", flush=True)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began_kb if began_kb else 0
    print(f"{done} inputs, no fault; memory grew by {grown_kb >> 10} MB", flush=True)
    return 1 if grown_kb > GROWTH_KB_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
