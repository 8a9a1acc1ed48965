"""Limits and windows of an account under arbitrary events (property 6 of CONTRIBUTING.md)."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.balance.account import CUTS
from gateway.balance.accounts import Accounts
from gateway.balance.inflight import Mark
from gateway.balance.window import DROP, FAR, LEAP, NARROWER, WIDER, Window
from gateway.types import Fit, RateLimits, Reason, Verdict
from tests.kit.length import short_or_long
from tests.unit.balance.busy_loop import BusyLoop
from tests.unit.balance.fluid import SHAPES
from tests.unit.schedule.build import settings

QUICK = hypothesis_settings(max_examples=short_or_long(75, 150), deadline=None, database=None)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "end", "end", "pass", "told"]),
        st.sampled_from(list(Verdict)),
        st.integers(0, 50),
        st.sampled_from([None, 0.0, 3.0, 1000.0]),
    ),
    max_size=80,
)


def one(window: str = "off", **fields: int) -> Accounts:
    given_settings = settings(
        {"a": {"initial_concurrency": 4, "max_concurrency": 6, **fields}},
        balance={"eject_after": 2, "min_limit": 2, "min_window": 2, "window": window},
    )
    return Accounts(given_settings.accounts, given_settings.balance)


@given(STEPS, st.sampled_from([0, 60]), st.sampled_from([0, 600]))
@QUICK
def test_account_limit_moves_only_as_it_may(
    steps: list[tuple[str, Verdict, int, float | None]], rpm: int, tpm: int
) -> None:
    """A limit stays within its bounds, grows only by a success while in use, falls only by a
    drop."""
    it, now, leases = one(rpm=rpm, tpm=tpm), 0.0, []
    for step, verdict, pick, after in steps:
        before = it.snapshot(now)[0]
        if step == "pass":
            now += pick
        elif step == "take" and isinstance(it.choose("m", ("a",), now), Fit):
            leases.append(it.take("a", "m", 10.0, now))
        elif step == "end" and leases:
            lease = leases.pop(pick % len(leases))
            it.give_back(lease, verdict, retry_after_s=after, tokens=None, now=now)
        else:
            continue
        it.check()
        seen = it.snapshot(now)[0]
        assert 2 <= seen.limit <= 6
        assert seen.inflight == len(leases)
        if seen.limit > before.limit:
            assert verdict is Verdict.SUCCESS
            assert 2 * before.inflight >= before.limit
        if seen.limit < before.limit or seen.cuts > before.cuts:
            assert verdict in CUTS
            assert seen.cuts == before.cuts + 1
    # whatever happened, time and its own requests' ends bring it back
    for lease in leases:
        it.give_back(lease, Verdict.IGNORED, now=now)
    assert isinstance(it.choose("m", ("a",), now + 1000.0), Fit)
    assert it.snapshot(now)[0].inflight == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "take", "end", "end", "told"]),
            st.sampled_from([Verdict.SUCCESS] * 6 + list(Verdict)),
            st.integers(0, 50),
            st.sampled_from([None, 1.0, 50.0, 1500.0]),
        ),
        min_size=40,
        max_size=300,
    ),
    st.floats(0.001, 100.0),
    st.integers(2, 40),
)
@QUICK
def test_window_moves_only_as_it_may(
    steps: list[tuple[str, Verdict, int, float | None]], pace_s: float, start: int
) -> None:
    """A window stays within its bounds and grows only by a success that found it in use; what is in
    flight passes neither the limit nor, without express, the window."""
    it = one("auto", initial_concurrency=start, max_concurrency=64)
    now, leases = 0.0, []
    for step, verdict, pick, tokens in steps:
        now += pace_s * (pick + 1) / 10
        before = it.snapshot(now)[0]
        window = before.windows[0]
        if step == "take":
            express = pick % 5 == 0
            if isinstance(it.choose("m", ("a",), now, express=express), Fit):
                leases.append(it.take("a", "m", 10.0, now))
                room = window.window * 1.25 + 1 if express else window.window
                assert window.inflight + 1 <= room
                assert len(leases) <= before.limit
        elif step == "end" and leases:
            lease = leases.pop(pick % len(leases))
            used = None if tokens is None else tokens + 10.0
            it.give_back(lease, verdict, tokens=used, output_tokens=tokens, now=now)
        elif step == "told" and leases:
            limits = RateLimits(remaining_requests=pick, remaining_tokens=pick)
            it.answered(leases[pick % len(leases)], limits, now)
        it.check()
        seen = it.snapshot(now)[0].windows[0]
        assert seen.inflight == len(leases)
        assert 2 <= seen.window <= 64
        if seen.window > window.window:
            assert (step, verdict) == ("end", Verdict.SUCCESS)
            assert 2 * window.inflight >= window.window or seen.window <= start
    stored = it.to_save()
    assert one("auto").restore(stored, 0.0) == 1
    for lease in leases:
        it.give_back(lease, Verdict.IGNORED, now=now)
    assert isinstance(it.choose("m", ("a",), now + 1000.0), Fit)


@given(STEPS)
@QUICK
def test_account_is_blocked_until_the_time_it_gives(
    steps: list[tuple[str, Verdict, int, float | None]],
) -> None:
    """`until_s` is in the future, and by then the reason is gone or another."""
    it, now, leases = one(rpm=60, tpm=600), 0.0, []
    for step, verdict, pick, after in steps:
        if step == "pass":
            now += pick / 7
        elif step == "take" and isinstance(it.choose("m", ("a",), now), Fit):
            leases.append(it.take("a", "m", 10.0, now))
        elif step == "end" and leases:
            it.give_back(leases.pop(), verdict, retry_after_s=after, now=now)
        elif step == "told" and leases:
            limits = RateLimits(None if pick % 2 else 10 * pick, pick // 10, after)
            it.answered(leases[pick % len(leases)], limits, now)
        answer = it.choose("m", ("a",), now)
        if isinstance(answer, Fit) or answer.until_s is None:
            continue
        assert answer.until_s > now
        then = it.choose("m", ("a",), answer.until_s)
        assert isinstance(then, Fit) or (then.reason, then.until_s) != (
            answer.reason,
            answer.until_s,
        )
        assert isinstance(then, Fit) or then.reason is not Reason.ACCOUNT_BACKOFF
        now = answer.until_s


class Watched(Window):
    """A window whose every move is held against what it may do."""

    most = 0  # requests in flight at once, so far

    def take(self, now: float) -> Mark:
        before = self.base, self.value
        mark = super().take(now)
        assert (self.base, self.value) == before
        self.most = max(self.most, self.inflight)
        return mark

    def learn(self, *args: Any) -> None:
        base, value, used = self.base, self.value, self.inflight >= self.value
        super().learn(*args)
        low, high = self.bounds
        assert low <= self.base <= high
        assert low <= self.value <= high
        if self.base > base:
            assert used
            seen = 1.1 * self.most  # as bins are a tenth wide
            assert self.base <= max(LEAP * base, FAR * seen) + 0.5
        if self.base < base:
            assert self.base >= min(base, math.floor(DROP * base + 0.5))
        if self.value not in (self.base, value):
            assert used
            assert NARROWER * self.base <= self.value <= max(WIDER * self.base, self.base + 1.0)


@given(
    st.sampled_from(["flat", "saturating", "power", "linear"]),
    st.floats(4.0, 40.0),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.sampled_from([0.0, 0.0004, 0.002]),
    st.integers(2, 60),
    st.tuples(st.integers(1, 8), st.integers(8, 100)),
    st.lists(st.integers(1, 80), min_size=2, max_size=3),
)
@QUICK
def test_window_of_a_provider_moves_only_as_it_may(
    shape: str,
    knee: float,
    noise: float,
    work_s: float,
    start: int,
    bounds: tuple[int, int],
    loads: list[int],
) -> None:
    """For any provider, load and work of the gateway's own: a window moves with answers
    alone, within its bounds; it grows only where it is in use, by LEAP or to FAR times what was in
    flight; it falls by DROP at most; a probe is no wider and no narrower than it may be."""
    slowdown = (lambda n: 1.0) if shape == "flat" else SHAPES[shape](knee)
    window = Watched("m", start)
    window.configure(*bounds)
    loop = BusyLoop(window, work_s)
    for clients in loads:
        loop.run(clients, 6.0, lambda n: 0.1 * slowdown(n), noise)
    learned = window.to_save()
    again = Window("m", start)
    again.configure(*bounds)
    again.restore(learned)
    again.check()
