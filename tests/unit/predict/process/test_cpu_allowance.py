"""The share of a core that learning may take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.predict.process.cpu_allowance import (
    IDLE_SHARE,
    LEAST_S,
    SAVED_S,
    CpuAllowance,
    learning_share,
)


@given(st.floats(0.01, 1.0), st.floats(0.0, 1.2), st.floats(0.0, 1.2))
def test_share_is_the_setting_beside_a_busy_loop_and_more_beside_an_idle_one(
    setting: float, loop: float, busier: float
) -> None:
    """Never less than the setting, all of a core at most, and less the busier the loop is."""
    share = learning_share(setting, loop)
    assert setting <= share <= 1.0
    assert learning_share(setting, loop + busier) <= share
    if loop >= IDLE_SHARE:
        assert share == setting
    assert learning_share(setting, 0.0) == 1.0


class Virtual:
    """A clock, and an allowance that is used as far as it goes."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.worked_s = 0.0
        self.allowance = CpuAllowance(lambda: self.now_s)

    def work_until(self, end_s: float, piece_s: float) -> None:
        while self.now_s < end_s:
            wait_s = self.allowance.wait_s()
            if wait_s == 0.0:
                self.allowance.spend(piece_s)
                self.worked_s += piece_s
            self.now_s += wait_s or piece_s


@given(st.floats(0.01, 1.0), st.floats(1e-4, 0.02))
def test_allowance_is_kept_to(share: float, piece_s: float) -> None:
    """Over a second no more is used than the share, what was saved, and one piece that was begun;
    and no less where there is work enough."""
    it = Virtual()
    it.allowance.change(share)
    it.work_until(1.0, piece_s)
    assert it.worked_s <= share + SAVED_S + piece_s
    assert it.worked_s >= share * (1.0 - 2 * SAVED_S) - piece_s - LEAST_S


def test_allowance_saves_for_one_tick_alone() -> None:
    """A long rest is not worth more than a tenth of a second's share."""
    it = Virtual()
    it.allowance.change(0.15)
    it.now_s = 1000.0
    assert it.allowance.wait_s() == 0.0
    it.allowance.spend(SAVED_S * 0.15)
    assert it.allowance.wait_s() == pytest.approx(LEAST_S / 0.15)


def test_allowance_owes_for_a_while_alone() -> None:
    """After an hour of work beyond its share, which could not be left undone, nothing is held
    against the next second."""
    it = Virtual()
    for _ in range(36_000):
        it.now_s += 0.1
        it.allowance.change(0.01)
        it.allowance.spend(0.003)
    it.allowance.change(1.0)
    assert it.allowance.wait_s() == pytest.approx(SAVED_S + LEAST_S)
