"""Command-line arguments that several tools have in common."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.errors import SettingsError
from gateway.settings import load
from gateway.settings.schema import Settings


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declare --config."""
    parser.add_argument("--config", type=Path, default=Path("gateway.toml"), metavar="FILE")


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Declare --config, --data and --history: where rows are read from."""
    add_config(parser)
    add_data(parser, "conversations as JSON lines, .gz or not")
    parser.add_argument(
        "--history",
        nargs="?",
        const="",
        metavar="FILE",
        help="a gateway's store; without FILE the one of --config",
    )


def add_data(parser: argparse.ArgumentParser, text: str) -> None:
    """Declare --data."""
    parser.add_argument("--data", type=Path, metavar="FILE", help=text)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Declare --set, which changes the gateway's settings."""
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")


def settings_of(args: argparse.Namespace) -> Settings | None:
    """Settings of --config; None where there is no such file. Raises SettingsError."""
    return load.load(args.config) if args.config.exists() else None


def history_of(args: argparse.Namespace) -> Path | None:
    """The store that --history names, without FILE that of --config; None without the option.

    Raises:
        SettingsError: no FILE is named and the settings cannot be read.
    """
    if args.history is None:
        return None
    return Path(args.history) if args.history else store_of(args)


def store_of(args: argparse.Namespace) -> Path:
    """The store of --config. Raises SettingsError where there are no settings."""
    settings = settings_of(args)
    if settings is None:
        raise SettingsError(f"{args.config}: cannot be read, and --history names no file")
    return Path(settings.store.path)


def words(text: str) -> list[str]:
    """Type of a list: the parts between commas, empty ones left out."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[float]:
    """Type of a list of numbers. Raises SettingsError."""
    return [_number(part) for part in words(text)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{text!r} is no number") from None


def check_names(tool: str, what: str, given: Sequence[str], names: Sequence[str]) -> None:
    """Raises SettingsError where a given name is none of `names`, which the error lists."""
    for name in given:
        if name not in names:
            raise SettingsError(f"{tool}: no {what} {name!r}; there are {', '.join(names)}")


def this_command() -> str:
    """This process's command line, for a report; of paths only the names, since others read it."""
    return " ".join(["sagesched", *(re.sub(r"[^=,]*/", "", arg) for arg in sys.argv[1:])])
