"""The soak's accounts: each request ends as its kind can, and sizes stay."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.bench.soak import Look, faults
from tests.bench.soak_clients import Asked

SENT = {"buffered": 90, "leaves in mid-stream": 10, "provider closes": 5, "bad request": 3}
ENDED = {"ok": 92, "cancelled": 8, "upstream_error": 5, "client_error": 3}
STEADY = [Look(100 * n, 80.0, 130.0, 90, 30, 10_000) for n in range(1, 21)]
REST = Look(2000, 80.0, 130.0, 18, 3, 9_000)


def asked() -> Asked:
    made = Asked(0, 0, seed=0)
    made.sent.update(SENT)
    return made


def test_a_client_that_leaves_may_have_had_its_answer() -> None:
    assert faults(asked(), Counter(ENDED), 0, [*STEADY, REST]) == []


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        ({"ok": 91}, "91 ok and 8 cancelled"),
        ({"ok": 89, "cancelled": 11}, "89 ok and 11 cancelled"),
        ({"upstream_error": 4}, "4 upstream errors for 5 sent"),
        ({"failed": 1}, "1 ended as failed"),
    ],
)
def test_a_request_without_its_outcome_is_told(ended: dict[str, int], told: str) -> None:
    (found,) = faults(asked(), Counter({**ENDED, **ended}), 0, [*STEADY, REST])
    assert found.startswith(told)


def test_growth_and_leftovers_are_told() -> None:
    grown = [look._replace(gateway_mb=80.0 + look.sent / 100) for look in STEADY]
    found = faults(asked(), Counter(ENDED), 1, [*grown, REST._replace(tasks=31)])
    assert [sentence.split(" ")[0] for sentence in found] == ["1", "gateway_mb", "31"]
