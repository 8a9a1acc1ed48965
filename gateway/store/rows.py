"""Rows of the store as structs, and the SQL that writes and reads them.

A column list is in the order of the struct's fields, so that a row is bound with `astuple` and
rebuilt by position; a test compares both.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from gateway.types import HistoryRow, ObservedRow, Outcome

Status = Literal["queued", "running", "done", "failed", "gone"]


class JobRow(Struct, frozen=True, gc=False):
    """A job of `POST /submit`. `gone` is a tombstone: its TTL is over and its content removed.

    `request`, `result`, `error`, `forecast` are the caller's bytes, stored unchanged. Times are
    Unix seconds.
    """

    id: str
    tenant: str
    status: Status
    created_wall_s: float
    request: bytes
    started_wall_s: float | None = None
    ended_wall_s: float | None = None
    result: bytes | None = None
    error: bytes | None = None
    forecast: bytes | None = None


JOB_COLUMNS = ", ".join(JobRow.__struct_fields__)
HISTORY_COLUMNS = ", ".join(HistoryRow.__struct_fields__)

INSERT_JOB = (
    f"INSERT INTO jobs ({JOB_COLUMNS}) VALUES ({', '.join('?' * len(JobRow.__struct_fields__))})"
)
SELECT_JOB = f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?"
SELECT_UNFINISHED = (
    f"SELECT {JOB_COLUMNS} FROM jobs WHERE status IN ('queued', 'running') ORDER BY created_wall_s"
)
# A job ends once: rows that are done, failed or gone are not updated.
UPDATE_JOB = """
UPDATE jobs SET status = ?, result = coalesce(?, result), error = coalesce(?, error),
    ended_wall_s = coalesce(?, ended_wall_s), started_wall_s = coalesce(?, started_wall_s),
    forecast = coalesce(?, forecast)
WHERE id = ? AND status IN ('queued', 'running')
"""
EXPIRE_JOBS = """
UPDATE jobs SET status = 'gone', request = x'', result = NULL, error = NULL, forecast = NULL
WHERE id IN (
    SELECT id FROM jobs WHERE ended_wall_s < ? AND status IN ('done', 'failed')
    ORDER BY ended_wall_s LIMIT ?)
"""
BURY_JOBS = """
DELETE FROM jobs WHERE id IN (
    SELECT id FROM jobs WHERE ended_wall_s < ? AND status = 'gone' ORDER BY ended_wall_s LIMIT ?)
"""

INSERT_HISTORY = (
    f"INSERT INTO history ({HISTORY_COLUMNS})"
    f" VALUES ({', '.join('?' * len(HistoryRow.__struct_fields__))})"
)
# Counts by tenant, and a tenant's newest rows before a given one: for all encoders, and for one.
# All four read an index alone (history_tenant, history_window).
ANY = (
    "SELECT tenant, count(*) FROM history GROUP BY tenant",
    "SELECT seq FROM history WHERE tenant = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
)
ENCODED = (
    "SELECT tenant, count(*) FROM history WHERE encoder = ? GROUP BY tenant",
    "SELECT seq FROM history WHERE encoder = ? AND tenant = ? AND seq < ?"
    " ORDER BY seq DESC LIMIT ?",
)
COUNT_HISTORY = ANY[0]
TRIM_TENANT = """
DELETE FROM history WHERE seq IN (
    SELECT seq FROM history WHERE tenant = ? ORDER BY seq LIMIT ?)
"""
AGE_HISTORY = """
DELETE FROM history WHERE seq IN (
    SELECT seq FROM history WHERE wall_s < ? ORDER BY wall_s LIMIT ?)
"""


def select_history(count: int) -> str:
    """SQL that selects `count` rows by their numbers, oldest first."""
    return f"SELECT {HISTORY_COLUMNS} FROM history WHERE seq IN ({_marks(count)}) ORDER BY seq"


def _marks(count: int) -> str:
    return ", ".join("?" * count)


OBSERVED_COLUMNS = ", ".join(ObservedRow.__struct_fields__)
INSERT_OBSERVED = (
    f"INSERT INTO observed ({OBSERVED_COLUMNS})"
    f" VALUES ({', '.join('?' * len(ObservedRow.__struct_fields__))})"
)
SELECT_OBSERVED = f"""
SELECT * FROM (SELECT {OBSERVED_COLUMNS} FROM observed ORDER BY seq DESC LIMIT ?)
ORDER BY arrived_wall_s
"""
TRIM_OBSERVED = """
DELETE FROM observed WHERE seq <= (SELECT max(seq) FROM observed) - ?
"""


def observed_row(values: tuple[Any, ...]) -> ObservedRow:
    """An `ObservedRow` from a row of OBSERVED_COLUMNS."""
    row = ObservedRow(*values)
    return msgspec.structs.replace(row, outcome=Outcome(row.outcome))


def to_sql(row: JobRow | HistoryRow | ObservedRow) -> tuple[Any, ...]:
    """The row's values in column order."""
    return astuple(row)


def history_row(values: tuple[Any, ...]) -> HistoryRow:
    """A `HistoryRow` from a row of HISTORY_COLUMNS; SQLite returns booleans as numbers."""
    fields: list[Any] = [bool(v) if f else v for v, f in zip(values, _FLAGS, strict=True)]
    return HistoryRow(*fields)


_FLAGS = [name in ("censored", "success", "shared") for name in HistoryRow.__struct_fields__]


def job_row(values: tuple[Any, ...]) -> JobRow:
    """A `JobRow` from a row of JOB_COLUMNS."""
    return JobRow(*values)
