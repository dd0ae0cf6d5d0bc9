"""Sizes × STARTTLS × signatures: every cell against the same receiver, by the same node, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from bench.content import SIGNED_DOMAIN, UNSIGNED_DOMAIN, content_of, rows_over
from bench.far import SinkKind
from bench.openssl import Dkim
from bench.receiver import ReceiverOptions
from bench.usage import CpuMicroseconds
from bench.world import Plan, World, Zone, rule, standing

SIZES_KBYTES: Final = (1, 10, 50, 100)
DOMAINS: Final = 10
WARM_UP_RECIPIENTS: Final = 500
CELL_RECIPIENTS_MIN: Final = 100
_TLS, _PLAIN = "tls.bench.test", "plain.bench.test"


class MatrixOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``seconds_per_cell`` is about what each takes: the first guess is corrected from cell to cell."""

    seconds_per_cell: float
    children: int
    connections: int
    sizes_kbytes: tuple[int, ...] = SIZES_KBYTES


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement. ``mbytes_per_second`` counts bodies."""

    size_kbytes: int
    tls: bool
    dkim: Dkim
    recipients: int
    messages_per_second: float
    mbytes_per_second: float
    cpu_us_per_message: CpuMicroseconds


class MatrixFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The line of ``--json``. The ratio is of unsigned messages; None without cells of 10 KB."""

    children: int
    connections: int
    sink: SinkKind
    cells: list[Cell]
    tls_ratio_10kb: float | None


async def matrix(options: MatrixOptions, on_step: Callable[[str], None]) -> MatrixFigures:
    """BenchFailed when a message was not delivered exactly once, by our books or by the receiver's count."""
    rules = rule("tls", f"*.{_TLS}", connections_max=options.connections, tls="required")
    rules += rule("plain", f"*.{_PLAIN}", connections_max=options.connections, tls="disabled")
    plan = Plan(
        sink=SinkKind.RECEIVER,
        manner=ReceiverOptions(processes=2, tls=True),
        rules=rules,
        zones=(Zone(_TLS, DOMAINS, DOMAINS), Zone(_PLAIN, DOMAINS, DOMAINS)),
        children=options.children,
        dkim=Dkim.RSA2048,
    )
    cells: list[Cell] = []
    speed = 1.0  # of this machine, against the guess
    async with standing(plan, on_step) as world:
        await world.node.start()
        on_step("warming up")
        for suffix in (_TLS, _PLAIN):
            await world.warm_up(rows_over(WARM_UP_RECIPIENTS, DOMAINS, suffix), content_of(10_000))
        for size_kbytes in options.sizes_kbytes:
            for dkim in (Dkim.NONE, Dkim.RSA2048):
                for is_tls in (False, True):
                    guess = _guessed_rate(size_kbytes, dkim, is_tls)
                    recipients = max(CELL_RECIPIENTS_MIN, round(options.seconds_per_cell * guess * speed))
                    on_step(f"{size_kbytes} KB, DKIM {dkim}, TLS {'on' if is_tls else 'off'}: {recipients:,} messages")
                    cells.append(await _cell(world, size_kbytes, dkim, is_tls, recipients))
                    speed = cells[-1].messages_per_second / guess
        await world.node.stop()
    world.check_taken(sum(cell.recipients for cell in cells) + 2 * WARM_UP_RECIPIENTS)
    return MatrixFigures(
        children=options.children,
        connections=options.connections,
        sink=SinkKind.RECEIVER,
        cells=cells,
        tls_ratio_10kb=_tls_ratio(cells),
    )


async def _cell(world: World, size_kbytes: int, dkim: Dkim, is_tls: bool, recipients: int) -> Cell:
    size_bytes = size_kbytes * 1_000
    content = content_of(size_bytes, domain=UNSIGNED_DOMAIN if dkim is Dkim.NONE else SIGNED_DOMAIN)
    delivery_id = await world.fill(rows_over(recipients, DOMAINS, _TLS if is_tls else _PLAIN), content)
    used = await world.drain(delivery_id, recipients)
    await world.check(delivery_id, recipients)
    return Cell(
        size_kbytes=size_kbytes,
        tls=is_tls,
        dkim=dkim,
        recipients=recipients,
        messages_per_second=used.rate(recipients),
        mbytes_per_second=round(used.rate(recipients) * size_bytes / 1e6, 2),
        cpu_us_per_message=used.cpu_us(recipients),
    )


def _guessed_rate(size_kbytes: int, dkim: Dkim, is_tls: bool) -> float:
    """Messages a second, good enough to choose how many to send."""
    return 2e6 / (75 + size_kbytes * (2.2 if is_tls else 0.8) + (290 if dkim is not Dkim.NONE else 0))


def _tls_ratio(cells: list[Cell]) -> float | None:
    rates = {cell.tls: cell.messages_per_second for cell in cells if (cell.size_kbytes, cell.dkim) == (10, Dkim.NONE)}
    return round(rates[True] / rates[False], 3) if rates else None
