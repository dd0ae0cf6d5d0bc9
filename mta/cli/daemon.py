"""What commands share that ask the daemon of this machine: its settings, and the database that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from mta.settings import Settings, load_settings

DEFAULT_CONFIG: Final = Path("config/mta.toml")
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="MTA_CONFIG", help="The node's mta.toml: where its daemon answers.", show_default=False
    ),
]


def settings_of(config: Path | None) -> Settings:
    """Those of the file, of the shipped one where that is there, else the defaults."""
    return load_settings(config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None))


def dsn_of(dsn: str, settings: Settings) -> str:
    """The database of the option or the environment, else of the settings."""
    return dsn or settings.database.dsn
