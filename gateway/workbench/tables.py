"""Report files: Markdown tables, how their cells show numbers, and writing them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import SettingsError
from gateway.workbench.figures import RelativeChange

NOTHING = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table without a line break at its end.

    Args:
        text_columns: the first so many are aligned left, the others right.
    """
    numbers = len(head) - text_columns
    lines = [_line(head), "|" + "---|" * text_columns + "---:|" * numbers]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_report(folder: Path, tree: Any, text: str) -> None:
    """Write FOLDER/report.json and FOLDER/report.md. Raises SettingsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        encoded = msgspec.json.format(msgspec.json.encode(tree), indent=1)
        (folder / "report.json").write_bytes(encoded)
        (folder / "report.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{folder}: cannot be written: {error.strerror}") from None


def number(value: float | None) -> str:
    """Three significant digits, from 1,000 on none after the point; None and NaN are a dash."""
    if value is None or value != value:
        return NOTHING
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def percent(change: RelativeChange | None) -> str:
    """A change with its interval; None is a dash."""
    if change is None:
        return NOTHING
    return f"{change.value:+.1%} ({change.low:+.0%} … {change.high:+.0%})"
