"""``mta delivery preview``: the message as it would go out, and what it weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from mta.cli.terminal import AsJson, DeliveryId, Dsn, out, print_json, shown, warn, with_database
from mta.message import KeyRing, RingEntry, Signer, Template, compile_content, load_content, sender_domain
from mta.message.advice import one_click_advice, size_advice
from mta.message.fields import RenderError
from mta.model.address import parse_mailbox
from mta.model.errors import BadInput
from mta.queue import deliveries
from mta.queue.connection import Conn
from mta.queue.installation import verp_key
from mta.queue.sample import Sample, sample
from mta.settings import load_settings
from mta.settings.dkim import read_key

LINES_SHOWN: Final = 200


def preview(
    delivery_id: DeliveryId,
    to: Annotated[
        str | None, typer.Option(help="Another address for the sample recipient.", show_default=False)
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option(help="Another value, as NAME=TEXT; may be repeated.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Sign as the node with this mta.toml would.", exists=True, dir_okay=False, show_default=False
        ),
    ] = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Show the message for the recipient that would go first, and its size on the wire."""

    async def work(conn: Conn) -> tuple[Template, Sample, str | None]:
        content = load_content(await deliveries.content(conn, delivery_id), f"delivery {delivery_id}")
        signers = None if config is None else signers_of(config, content.sender)
        key = await verp_key(conn)
        template = compile_content(content, delivery_id=delivery_id, verp_key=key, signers=signers or ())
        return template, await sample(conn, delivery_id, template.fields), one_click_advice(content, signers)

    template, found, of_one_click = with_database(dsn, work)
    found = _changed(found, to, value or [])
    try:
        rendered = template.bind(found.fields).render(
            found.address, found.reference, found.values, found.number, found.dated_unix_s
        )
    except RenderError as error:
        raise BadInput(f"delivery {delivery_id}", str(error)) from error
    message = b"".join(rendered.segments).decode(errors="backslashreplace")
    advice = [one for one in (size_advice(rendered.size_bytes), of_one_click) if one is not None]
    if as_json:
        about = {"address": found.address, "is_made_up": found.is_made_up, "size_bytes": rendered.size_bytes}
        print_json({**about, "advice": advice, "return_path": rendered.return_path.decode(), "message": message})
        return
    _print_message(message)
    made_up = " (made up: nobody waits)" if found.is_made_up else ""
    out.print(f"{rendered.size_bytes:,} bytes on the wire, for {shown(found.address)}{made_up}", highlight=False)
    warn(advice)


def signers_of(config: Path, sender: str) -> tuple[Signer, ...]:
    """Who signs on the node of these settings. BadInput when one of its keys cannot be used, or is missing."""
    signing = load_settings(config).signing
    domain = sender_domain(sender)
    entries = [RingEntry(entry.domain, entry.subdomains, read_key(entry).signer(entry)) for entry in signing.entries]
    signers = KeyRing(entries, is_required=signing.required).signers_for(domain)
    if signers is None:
        raise BadInput(str(config), f"has no key for {domain}, and requires one: the delivery would be held")
    return signers


def _changed(found: Sample, to: str | None, values: list[str]) -> Sample:
    given = dict(zip(found.fields, found.values, strict=True))
    for pair in values:
        name, separator, text = pair.partition("=")
        if not separator or name not in given:
            raise BadInput("--value", f"{pair!a} is not NAME=TEXT with one of: {', '.join(given) or 'no fields'}")
        given[name] = text
    address = found.address if to is None else parse_mailbox(to, "--to").text
    return msgspec.structs.replace(found, address=address, values=list(given.values()))


def _print_message(message: str) -> None:
    lines = message.split("\r\n")
    for line in lines[:LINES_SHOWN]:
        typer.echo(line)
    if len(lines) > LINES_SHOWN:
        typer.echo(f"... and {len(lines) - LINES_SHOWN:,} more lines (all of them with --json)")
