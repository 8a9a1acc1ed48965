"""The small derivations of the snapshots."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.unit.observe.records import snapshots


@pytest.mark.parametrize(
    ("states", "draining", "usable", "ready"),
    [
        (["open"], False, 1, True),
        (["backoff", "half_open", "ejected"], False, 2, True),
        (["ejected", "dead_key", "draining"], False, 0, False),
        ([], False, 0, False),
        (["open"], True, 1, False),
    ],
)
def test_snapshots_are_ready_with_a_usable_account_and_no_drain(
    states: list[str], draining: bool, usable: int, ready: bool
) -> None:
    """An account that rests for a moment is usable; one that is out is not."""
    scheduler = snapshots().scheduler
    accounts = tuple(replace(scheduler.accounts[0], state=state) for state in states)
    taken = snapshots(scheduler=replace(scheduler, accounts=accounts, draining=draining))
    assert (taken.usable_accounts, taken.ready) == (usable, ready)
