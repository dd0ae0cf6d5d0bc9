"""``mta deliverability``: newer texts of the shipped rules, from signed bundles; and bundles, made and signed."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

import mta
from mta.bundle import Manifest, make_key, open_bundle, public_key_text, read_private_key, seal_bundle
from mta.bundle.update import Outcome, check_texts, take_update
from mta.cli.daemon import Config, dsn_of, settings_of
from mta.cli.rules_common import By, operator
from mta.cli.terminal import AsJson, Dsn, err, out, parse_time, print_json, print_table, with_database
from mta.model.errors import BadInput
from mta.queue import updates
from mta.queue.connection import Conn
from mta.queue.updates import Attempt, Result, Update
from mta.settings.bounce_rules import SHIPPED, parse_bounce_rules
from mta.settings.shipped import BOUNCE_RULES, PROVIDERS, parse_updated_rules
from mta.settings.toml_source import FILE_BYTES_MAX, decode, read_whole

app = typer.Typer(help="Newer rules for failures and providers, from signed bundles.", no_args_is_help=True)

REFUSED_EXIT: Final = 1
_PROVIDERS: Final = SHIPPED.with_name(PROVIDERS)
_NONE: Final = "no update is in force; each program goes by the files that it came with"


@app.callback()
def deliverability() -> None:
    """Newer rules for failures and providers, from signed bundles."""


@app.command()
def update(
    source: Annotated[
        str, typer.Option("--from", help="A file or an https URL; else that of the settings.", show_default=False)
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all of it, and change nothing.")] = False,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Take a version below one that was applied.")
    ] = False,
    by: By = "",
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Take the bundle of the source, if it is signed, newer and can be used; exit code 1 when it is not taken."""
    settings, who = settings_of(config), operator(by)

    async def work(conn: Conn) -> Outcome:
        return await take_update(conn, settings, who, source=source, allow_older=allow_older, dry_run=dry_run)

    outcome = with_database(dsn_of(dsn, settings), work)
    if as_json:
        number = None if outcome.update is None else outcome.update.id
        plain = {"result": outcome.result, "version": outcome.version, "detail": outcome.detail, "update": number}
        print_json(plain)
    elif outcome.result in (Result.REFUSED, Result.FAILED):
        said = f"not taken, nothing is changed: {outcome.detail}"
        err.print(said, style="red", markup=False, highlight=False, soft_wrap=True)
    else:
        out.print(outcome.detail, markup=False, highlight=False, soft_wrap=True)
    if outcome.result in (Result.REFUSED, Result.FAILED):
        raise typer.Exit(REFUSED_EXIT)


@app.command()
def status(config: Config = None, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Which update is in force, since when, from where, and what the last attempt came to."""
    settings = settings_of(config)
    own = settings.deliverability

    async def work(conn: Conn) -> tuple[Update | None, list[Attempt]]:
        return await updates.in_force(conn), await updates.history(conn, 1)

    found, last = with_database(dsn_of(dsn, settings), work)
    if as_json:
        print_json(
            {
                **{"update": None if found is None else _plain(found), "last_attempt": last[0] if last else None},
                **{"enabled": own.enabled, "source": own.source, "daily_at": own.daily_at},
                "public_keys": own.public_keys,
            }
        )
        return
    if found is None or not found.texts:
        out.print(_NONE)
    else:
        rows = [("version", str(found.version)), ("made", found.created_at), ("note", found.note or None)]
        rows += [("in force since", found.applied_at), ("by", found.applied_by or "the schedule")]
        rows += [("from", found.source), ("signed by", found.signed_by), ("files", ", ".join(sorted(found.texts)))]
        print_table("Update in force", ("", ""), rows)
    every = f"daily at {own.daily_at} UTC, by mta keep" if own.enabled else "only when asked for"
    out.print(f"updates are taken {every}; source: {own.source or 'none'}", markup=False, soft_wrap=True)
    if last:
        _print_attempts("Last attempt", last)


@app.command()
def history(
    limit: Annotated[int, typer.Option(help="So many at most.", min=1, max=100_000)] = 100,
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Every attempt, the newest first: when, by whom, from where, which version, and what came of it."""
    found = with_database(dsn_of(dsn, settings_of(config)), lambda conn: updates.history(conn, limit))
    if as_json:
        print_json({"attempts": found})
        return
    _print_attempts("Attempts", found)


@app.command()
def show(
    update_id: Annotated[int | None, typer.Argument(help="Its number in the history.", min=1)] = None,
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """The texts of an update; without a number, of the one in force."""

    async def work(conn: Conn) -> Update:
        found = await updates.in_force(conn) if update_id is None else await updates.get(conn, update_id)
        if found is None:
            raise BadInput("update", _NONE)
        return found

    found = with_database(dsn_of(dsn, settings_of(config)), work)
    if as_json:
        print_json({**_plain(found), "texts": found.texts})
        return
    for name, text in sorted(found.texts.items()):
        typer.echo(f"# file {name} of version {found.version}")
        typer.echo(text, nl=not text.endswith("\n"))


@app.command()
def rollback(
    update_id: Annotated[
        int | None, typer.Argument(help="The update to go back to; else the one before.", min=1, show_default=False)
    ] = None,
    to_shipped: Annotated[bool, typer.Option("--to-shipped", help="To the files that each program came with.")] = False,
    by: By = "",
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Put the update before into force again, on all nodes; before the first one stand the shipped files."""
    settings, who = settings_of(config), operator(by)
    if update_id is not None and to_shipped:
        raise BadInput("--to-shipped", "and a number exclude each other")

    async def work(conn: Conn) -> Update:
        current = await updates.in_force(conn)
        if current is None or (to_shipped and not current.texts):
            raise BadInput("update", _NONE)
        to = None
        if update_id is not None:
            to = await updates.get(conn, update_id)
        elif not to_shipped:
            to = await updates.before(conn, current.id)
        if to is None and not current.texts:
            raise BadInput("update", _NONE)
        if to is not None and not to.texts:
            to = None
        if to is not None:
            await check_texts(conn, settings, to.texts, to.origin)
        return await updates.roll_back(conn, to, who)

    done = with_database(dsn_of(dsn, settings), work)
    if as_json:
        print_json({"update": _plain(done)})
    else:
        out.print(f"{done.origin} is in force again on all nodes" if done.texts else _NONE)


@app.command()
def make(
    target: Annotated[Path, typer.Option("--out", help="The bundle; a file of that name is replaced as a whole.")],
    key: Annotated[Path, typer.Option(help="Private key, from keygen.")],
    version: Annotated[int, typer.Option(help="Above that of every bundle before.", min=1)],
    bounce_rules: Annotated[Path, typer.Option(help="Rules for failures.")] = SHIPPED,
    providers: Annotated[Path, typer.Option(help="Rules for providers.")] = _PROVIDERS,
    program_min: Annotated[str, typer.Option(help="The oldest mta that can read these files.")] = mta.__version__,
    created: Annotated[str, typer.Option(help="2027-01-31T08:00:00Z; else now.", show_default=False)] = "",
    note: Annotated[str, typer.Option(help="What is new, for those who take it.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Build and sign a bundle; files that no program could load are refused."""
    texts = {name: _text(path) for name, path in ((BOUNCE_RULES, bounce_rules), (PROVIDERS, providers))}
    parse_bounce_rules({str(bounce_rules): texts[BOUNCE_RULES]})
    parse_updated_rules(PROVIDERS, {PROVIDERS: ""}, texts, "bundle")
    at = parse_time(created, "--created") if created else datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    signer = read_private_key(key)
    content = seal_bundle(Manifest(version, at, program_min, {}, note), texts, signer)
    _replace(target, content)
    public = public_key_text(signer.public_key())
    if as_json:
        opened = open_bundle(content, [public], str(target))
        print_json({"file": str(target), "bytes": len(content), "manifest": opened.manifest, "signed_by": public})
    else:
        out.print(f"{target}: version {version}, {len(content):,} bytes, signed by {public}", soft_wrap=True)


@app.command()
def keygen(
    target: Annotated[Path, typer.Option("--out", help="File for the private key; must not be there yet.")],
    as_json: AsJson = False,
) -> None:
    """Make an Ed25519 key (mode 0600), and print its public half, for public_keys in the settings."""
    public = make_key(target)
    if as_json:
        print_json({"file": str(target), "public_key": public})
    else:
        typer.echo(public)


# --- parts ----------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    return decode(read_whole(path, FILE_BYTES_MAX)[0], str(path))


def _replace(target: Path, content: bytes) -> None:
    """Whoever reads it meanwhile has the old file or the new one."""
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        new.write_bytes(content)
        new.replace(target)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _plain(found: Update) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(found)
    del plain["texts"]
    return {**plain, "files": sorted(found.texts)}


def _print_attempts(title: str, found: list[Attempt]) -> None:
    print_table(
        title,
        ("at", "by", "from", "version", "result", "update", "detail"),
        [
            (
                *(one.at, one.by_whom or "the schedule", one.source or None, _number(one.version), one.result.value),
                *(_number(one.update_id), one.detail or None),
            )
            for one in found
        ],
    )


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)
