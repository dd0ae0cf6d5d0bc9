"""``mta bounce``: what refusals and mail that came back mean."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec
import typer

from mta.bounces import Kind, read_letter
from mta.cli import bounce_texts
from mta.cli.service import Config
from mta.cli.terminal import err
from mta.failure.qualify import Qualifier
from mta.failure.reply_text import classify_replies
from mta.model.failure import Evidence, FailureType, Verdict
from mta.settings.bounce_rules import load_bounce_rules, rule_files
from mta.settings.config import load_settings

app = typer.Typer(help="What refusals, and mail that came back, mean.", no_args_is_help=True)
MAIL_BYTES_MAX: Final = 64 << 20
_encode: Final = msgspec.json.Encoder().encode


bounce_texts.register(app)


class Line(msgspec.Struct, frozen=True):
    """What is printed of a recipient, or of a mail that is about none."""

    file: str
    line: int | None
    kind: str
    type: str
    reason: str | None
    reason_code: int | None
    category: str | None
    recipient: str | None
    diagnostic: str | None
    rule: str | None
    delayed: bool = False  # a warning: the server goes on trying


@app.command()
def classify(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Mails; none, or -: one on stdin.", show_default=False)
    ] = None,
    replies: Annotated[Path | None, typer.Option(help="A file of SMTP replies, one a line; - is stdin.")] = None,
    rules: Annotated[
        Path | None, typer.Option(help="The rules to go by; without it the shipped ones and your own.")
    ] = None,
    config: Config = None,
) -> None:
    """Print what mails or replies mean, one JSON object a recipient. Exit code 1 when a file could not be read."""
    files_of_rules = load_settings(config).failures.rules_files if rules is None else rule_files(rules)
    qualifier = Qualifier(load_bounce_rules(files_of_rules))
    is_all_read = True
    write = sys.stdout.buffer
    if replies is not None:
        is_all_read &= _each_reply(replies, qualifier, write)
    for path in files or ([] if replies is not None else [Path("-")]):
        try:
            raw = _read(path)
        except OSError as error:
            err.print(f"{path}: cannot be read: {error.strerror}", style="red", highlight=False, markup=False)
            is_all_read = False
            continue
        for line in of_mail(str(path), raw, qualifier):
            write.write(_encode(line) + b"\n")
    write.flush()
    if not is_all_read:
        raise typer.Exit(1)


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read(MAIL_BYTES_MAX)
    with path.open("rb") as file:
        return file.read(MAIL_BYTES_MAX)


def _each_reply(path: Path, qualifier: Qualifier, write: BinaryIO) -> bool:
    try:
        with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
            lines = (line.decode("utf-8", "replace") for line in file)
            for one in classify_replies(lines, qualifier):
                write.write(_encode(_line(str(path), one.line, None, one.evidence, one.verdict, one.text)) + b"\n")
    except OSError as error:
        err.print(f"{path}: cannot be read: {error.strerror}", style="red", highlight=False, markup=False)
        return False
    return True


def of_mail(file: str, raw: bytes, qualifier: Qualifier) -> Iterator[Line]:
    """One line for each recipient that a mail is about; one for all that is about none."""
    letter = read_letter(raw)
    if letter.kind is not Kind.BOUNCE:
        addresses: Iterable[str | None] = [one.address for one in letter.recipients] or [None]
        for address in addresses:
            yield Line(
                file, None, letter.kind.value, "none", None, None, None, address, letter.feedback_type or None, None
            )
        return
    for recipient in letter.recipients:
        evidence = recipient.evidence
        verdict = qualifier.qualify(evidence)
        if recipient.is_delayed and verdict.type is FailureType.HARD:
            verdict = verdict._replace(type=FailureType.SOFT)
        line = _line(file, None, recipient.address or None, evidence, verdict, said(evidence))
        yield msgspec.structs.replace(line, delayed=recipient.is_delayed)


def said(evidence: Evidence) -> str:
    """What was said, on one line."""
    return " ".join(part for part in (str(evidence.code or ""), evidence.enhanced, evidence.text) if part)[:1_000]


def _line(
    file: str, number: int | None, recipient: str | None, evidence: Evidence, verdict: Verdict, diagnostic: str
) -> Line:
    kind = "none" if verdict.type is FailureType.NOT_DEFINED else verdict.type.name.lower()
    reason = verdict.reason
    return Line(
        *(file, number, Kind.BOUNCE.value, kind, reason.name.lower(), int(reason), verdict.category.label, recipient),
        *(diagnostic, verdict.rule or None),
    )
