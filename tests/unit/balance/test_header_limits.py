from __future__ import annotations

from itertools import cycle

import pytest

from gateway.balance.header_limits import (
    BURST_S,
    FIRST_HOLD_S,
    LEAST,
    MAX_HOLD_S,
    PATIENCE_S,
    AccountLimits,
    HeaderLimit,
    ModelLimits,
)
from gateway.balance.saved_state import SavedLimits
from gateway.types import RateLimits

NEVER = float("-inf")


def header_limit() -> HeaderLimit:
    return HeaderLimit(LEAST[0])


def counted(one: HeaderLimit, now: float = 0.0) -> HeaderLimit:
    """The limit after four answers that said that something is left."""
    for _ in range(4):
        one.charge(1.0, now)
        one.update(None, 50, None, one.spent, now)
    return one


def test_header_limit_learns_a_limit_and_lets_it_be_spent_at_once() -> None:
    """The rest that a header states may be spent at once, then the limit's pace holds."""
    one = header_limit()
    one.charge(1.0, 0.0)
    one.update(60, 59, 1.0, spent=1.0, now=0.1)
    for _ in range(59):
        assert one.free_s <= 0.2
        one.charge(1.0, 0.2)
    one.charge(1.0, 0.2)
    assert 0.5 < one.free_s < 2.0
    assert charges_in_a_minute(one) == 60


def charges_in_a_minute(one: HeaderLimit) -> int:
    """Number of charges of 1 in the minute after the limit is next free."""
    start = now = one.free_s
    count = 0
    while now < start + 60.0 - 1e-6:
        one.charge(1.0, now)
        count += 1
        now = max(now, one.free_s)
    return count


def test_header_limit_takes_off_what_was_sent_since_that_request() -> None:
    """With 10 left and 9 sent since the request, one more may go."""
    one = header_limit()
    for _ in range(10):
        one.charge(1.0, 0.0)
    one.update(60, 10, None, spent=1.0, now=1.0)
    assert one.free_s <= 1.0
    one.charge(2.0, 1.0)
    assert one.free_s > 1.0


def test_header_limit_goes_by_each_answer_both_ways() -> None:
    """Each answer sets the level, also upwards: providers may not count what is charged (cached
    tokens)."""
    one = header_limit()
    one.charge(1.0, 0.0)
    one.update(60, 59, None, one.spent, 0.0)
    one.charge(500.0, 0.0)
    assert one.free_s > 400.0
    one.update(60, 30, None, one.spent, 0.0)
    assert one.free_s <= 0.0


def test_header_limit_of_more_under_way_than_is_left_waits_for_it() -> None:
    """If more was sent than is left, the limit waits for its pace to make up, at most
    MAX_HOLD_S."""
    one = header_limit()
    one.charge(1.0, 0.0)
    one.charge(15.0, 0.0)
    one.update(60, 8, None, 1.0, 0.0)
    assert one.free_s == 8.0
    one.charge(100.0, 0.0)
    one.update(60, 8, None, 1.0, 0.0)
    assert one.free_s > MAX_HOLD_S


def test_header_limit_that_counts_may_hold_until_its_reset() -> None:
    """Without a limit, "nothing left" holds until the reset, at most MAX_HOLD_S."""
    one = counted(header_limit(), 9.0)
    one.update(None, 0, 3.0, one.spent, 10.0)
    assert one.free_s == 13.0
    one = counted(header_limit(), 9.0)
    one.update(None, 0, 86_400.0, one.spent, 10.0)
    assert one.free_s == 10.0 + MAX_HOLD_S


def test_header_limit_that_never_counted_holds_briefly() -> None:
    """A first "nothing left" holds for FIRST_HOLD_S, or until an earlier reset."""
    for reset_s, until_s in ((None, FIRST_HOLD_S), (60.0, FIRST_HOLD_S), (0.5, 0.5)):
        one = header_limit()
        one.charge(1.0, 0.0)
        one.update(None, 0, reset_s, one.spent, 0.0)
        assert one.free_s == until_s


def test_header_limit_does_not_believe_absurd_limits() -> None:
    """A limit of one request a minute is ignored."""
    one = header_limit()
    one.charge(1.0, 0.0)
    one.update(1, 1, 60.0, spent=1.0, now=0.0)
    assert (one.limit, one.free_s) == (0, NEVER)


class Provider:
    """Serves everything, `latency_s` each, and says that nothing is left, or what `says` has in
    turn."""

    def __init__(
        self,
        limit: int | None,
        reset_s: float | None,
        latency_s: float,
        says: tuple[int, ...] = (0,),
    ) -> None:
        self.limit, self.reset_s, self.latency_s = limit, reset_s, latency_s
        self.says = cycle(says)
        self.one = header_limit()
        self.under_way: list[tuple[float, float]] = []  # when its header comes, spent
        self.served = 0
        self.stopped_s = 0.0  # with nothing under way: traffic stood still for a word alone

    def run(self, until_s: float, window: int, amount: float = 1.0) -> None:
        """From a fresh account: as many under way as the window has room for."""
        now, one = 0.0, self.one
        while now < until_s:
            while len(self.under_way) < window and one.free_s <= now:
                one.charge(amount, now)
                self.under_way.append((now + self.latency_s, one.spent))
            if not self.under_way:
                self.stopped_s += one.free_s - now
                now = one.free_s
                continue
            at, spent = self.under_way[0]
            if len(self.under_way) < window and now < one.free_s < at:
                now = one.free_s
                continue
            now = at
            del self.under_way[0]
            self.served += 1
            one.update(self.limit, next(self.says), self.reset_s, spent, now)


@pytest.mark.parametrize("limit", [None, 1, 10**9])
@pytest.mark.parametrize("reset_s", [None, 1.0, 60.0, 86_400.0])
@pytest.mark.parametrize("window", [1, 16])
@pytest.mark.parametrize("latency_s", [0.01, 5.0])
def test_header_limit_nothing_left_for_ever_stops_a_fresh_account_for_seconds(
    limit: int | None, reset_s: float | None, window: int, latency_s: float
) -> None:
    """A header that always says "nothing left" stops an account for 2 × FIRST_HOLD_S in all."""
    provider = Provider(limit, reset_s, latency_s)
    provider.run(120.0, window)
    assert provider.stopped_s <= 2 * FIRST_HOLD_S
    assert provider.served > 0.5 * window * 120.0 / latency_s


@pytest.mark.parametrize(("limit", "amount"), [(10, 1.0), (60, 1.0), (60, 20.0), (600, 100.0)])
def test_header_limit_an_invented_limit_paces_for_seconds(limit: int, amount: float) -> None:
    """A limit that always has nothing left and serves everything is ignored after the patience and
    a few halvings, however slow its pace."""
    provider = Provider(limit, 60.0, 0.01)
    provider.run(600.0, 1, amount)
    assert provider.stopped_s < PATIENCE_S + 2 * FIRST_HOLD_S
    assert provider.served > 50_000


def test_header_limit_an_invented_limit_costs_at_most_the_cap_for_each_request() -> None:
    """Debt of the header's own limit is forgiven beyond the cap."""
    one = header_limit()
    one.charge(100.0, 0.0)
    one.update(10, 0, 60.0, one.spent, 0.0)
    assert one.free_s == FIRST_HOLD_S
    one.refused(one.spent, 0.0)
    one.charge(100.0, 1.0)
    one.update(10, 0, 60.0, one.spent, 1.0)
    assert one.free_s == 1.0 + MAX_HOLD_S


@pytest.mark.parametrize(
    ("limit", "reset_s", "hold_s"), [(None, None, 4.0), (None, 1.0, 1.0), (60, 60.0, 1.0)]
)
def test_header_limit_that_alternates_costs_a_hold_for_two_requests(
    limit: int | None, reset_s: float | None, hold_s: float
) -> None:
    """A header that alternates is never contradicted; it costs a hold per two requests one at a
    time, and nothing with sixteen under way."""
    alone = Provider(limit, reset_s, 0.01, says=(50, 0))
    alone.run(600.0, window=1)
    assert alone.stopped_s / (alone.served / 2) == pytest.approx(hold_s, rel=0.05)
    several = Provider(limit, reset_s, 0.01, says=(50, 0))
    several.run(60.0, window=16)
    assert several.stopped_s == 0.0
    assert several.served > 0.9 * 16 * 60.0 / 0.01


def test_header_limit_hold_grows_with_answers_that_leave_something() -> None:
    """Each answer that says that something is left doubles the cap, up to MAX_HOLD_S."""
    alone = Provider(None, None, 0.01, says=(50, 50, 50, 50, 50, 0))
    alone.run(600.0, window=1)
    assert alone.stopped_s / (alone.served / 6) == pytest.approx(MAX_HOLD_S, rel=0.1)


def test_header_limit_confirmed_by_429s_holds_for_long() -> None:
    """The twin: where one a minute is served and the rest refused, the hold reaches MAX_HOLD_S."""
    one, now, asked, served_s = header_limit(), 0.0, 0, NEVER
    while now < 1200.0:
        one.charge(1.0, now)
        asked += 1
        one.update(None, 0, 60.0, one.spent, now)
        if now - served_s >= 60.0:
            served_s = now
        else:
            one.refused(one.spent, now)
        now = max(now + 0.01, one.free_s)
    assert asked <= 1.25 * 1200.0 / MAX_HOLD_S


class Bucket:
    """An honest provider of `limit` a minute, full at first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.level, self.at = limit, float(limit), 0.0

    def take(self, now: float) -> bool:
        self.level = min(self.level + (now - self.at) * self.limit / 60.0, float(self.limit))
        self.at = now
        if self.level < 1.0 - 1e-6:
            return False
        self.level -= 1.0
        return True


def refusals(limit: int, seconds: float) -> tuple[int, int]:
    """Requests served and refused by an honest bucket that is asked whenever the limit allows."""
    bucket, one = Bucket(limit), header_limit()
    now, served, refused = 0.0, 0, 0
    while now < seconds:
        one.charge(1.0, now)
        ok = bucket.take(now)
        one.update(limit, int(bucket.level + 1e-6), None, one.spent, now)
        if ok:
            served += 1
        else:
            refused += 1
            one.refused(one.spent, now)
        now = max(now + 0.001, one.free_s)
    return served, refused


def test_header_limit_at_an_honest_limit_is_seldom_refused() -> None:
    """At an honest limit, which always says "nothing left", each 429 doubles the patience."""
    served, refused = refusals(60, 3600.0)
    assert served >= 3600
    assert refused <= 20


def test_header_limit_trusts_again_after_a_refusal_but_once_an_episode() -> None:
    """A 429 makes an ignored header count again; 429s of requests under way together count once."""
    one, now = header_limit(), 0.0
    for _ in range(20):
        one.charge(1.0, now)
        one.update(None, 0, 60.0, one.spent, now)
        now += 60.0
    assert one.free_s == NEVER
    holds = []
    for _ in range(2):
        sent = []
        for _ in range(10):
            one.charge(1.0, now)
            sent.append(one.spent)
        for spent in sent:
            one.refused(spent, now)
        one.charge(1.0, now)
        one.update(None, 0, 60.0, one.spent, now)
        holds.append(one.free_s - now)
        now += 60.0
    assert 0.0 < holds[0] <= 1.0
    assert holds[0] < holds[1] < MAX_HOLD_S


@pytest.mark.parametrize("before", [None, 60])
def test_header_limit_is_believed_again_when_something_is_left(before: int | None) -> None:
    """An ignored header counts again as soon as it says that something is left."""
    one = header_limit()
    for second in range(60):
        one.charge(1.0, float(second))
        one.update(before, 0, None, one.spent, float(second))
    for _ in range(100):
        one.charge(1.0, 60.0)
    assert one.free_s <= 60.0
    one.update(60, 5, None, one.spent, 60.0)
    for _ in range(5):
        assert one.free_s <= 60.0
        one.charge(1.0, 60.0)
    one.charge(1.0, 60.0)
    assert one.free_s > 60.0


def test_header_limit_does_not_prolong_a_hold_by_answers_to_what_was_under_way() -> None:
    """Answers to requests sent before a "nothing left" do not prolong its hold."""
    one = header_limit()
    for _ in range(10):
        one.charge(1.0, 0.0)
    one.update(None, 0, 60.0, 1.0, 1.0)
    until_s = one.free_s
    for number in range(2, 11):
        one.update(None, 0, 60.0, float(number), 1.0 + number)
    assert one.free_s == until_s
    one.charge(1.0, 20.0)
    one.update(None, 0, 60.0, one.spent, 20.0)
    assert one.free_s > 20.0, "the twin: one that was sent after it says something"


def test_model_limits_learns_both_limits_and_keeps_them_for_a_restart() -> None:
    """Both limits are learned, and hold at once when restored."""
    one = ModelLimits()
    one.charge(100.0, 0.0)
    one.update(RateLimits(600, 599, 0.1, 60_000, 59_900, 0.1), 1.0, 100.0, 0.5)
    assert (one.requests.limit, one.tokens.limit) == (600, 60_000)
    again = ModelLimits()
    again.restore(600, 60_000)
    again.charge(120_000.0, 0.0)
    assert again.free_s == 120.0 - BURST_S
    again.correct(-30_000.0, 0.0)
    assert again.free_s == 90.0 - BURST_S


def test_model_limits_waits_for_the_slower_of_the_two() -> None:
    """The later of the two limits counts."""
    one = ModelLimits()
    one.restore(60, 60_000)
    for _ in range(100):
        one.charge(10.0, 0.0)
    assert one.free_s == 100.0 - BURST_S
    one.charge(200_000.0, 0.0)
    assert one.free_s == pytest.approx(201.0 - BURST_S)


def test_account_limits_are_one_for_a_model_of_several_names() -> None:
    """Names of one provider's model share limits; a model that is not served has none."""
    every = AccountLimits({"fast": "gpt", "cheap": "gpt", "big": "gpt-big"})
    assert every.by_model == {}
    assert every.open("fast") is every.open("cheap") is every.by_model["fast"]
    assert every.open("big") is not every.open("fast")
    assert every.open("else") is None


def test_account_limits_keep_a_model_over_a_reload_and_drop_one_that_left() -> None:
    """A reload keeps a model's limits, also under a new client's name, and drops a removed
    model's."""
    every = AccountLimits({"a": "x", "b": "y"})
    kept = every.open("a")
    every.open("b")
    every.configure({"c": "x", "d": "z"})
    assert every.by_model == {"c": kept}
    assert every.open("b") is None


def test_account_limits_have_a_lowest_and_restore_each() -> None:
    """`lowest` ignores models without a limit; restoring skips models that left."""
    every = AccountLimits({"a": "x", "b": "y", "c": "z"})
    for model, rpm in (("a", 500), ("b", 100), ("c", 0)):
        one = every.open(model)
        assert one is not None
        one.restore(rpm, 0)
    assert every.lowest == (100, 0)
    assert every.limits_of("x") == (500, 0)
    assert every.limits_of("unknown") == (0, 0)
    stored = every.to_save()
    assert stored == (SavedLimits("x", 500, 0), SavedLimits("y", 100, 0))
    again = AccountLimits({"b": "y", "q": "q"})
    again.restore(stored)
    assert again.lowest == (100, 0)
    assert list(again.by_model) == ["b"]


def test_header_limit_ends_a_hold_where_a_later_request_finds_something_left() -> None:
    """Only the answer to a later request ends a hold early."""
    for spent, free_s in ((3.0, 2.5), (1.0, 2.5), (4.0, float("-inf"))):
        it = HeaderLimit(10)
        for _ in range(4):
            it.charge(1.0, 0.0)
        it.update(None, 0, None, 3.0, 0.5)
        assert it.free_s == 2.5
        it.update(None, 50, None, spent, 0.6)
        assert it.free_s == free_s, spent


def test_header_limit_snapshot_has_what_is_left_until_its_reset() -> None:
    """A snapshot has the newest answer's rest less what was sent since, and the whole limit after
    the reset."""
    one = header_limit()
    assert one.snapshot("m", "requests", 0.0) is None
    for _ in range(3):
        one.charge(1.0, 0.0)
    one.update(60, 5, 20.0, spent=2.0, now=1.0)
    one.update(60, 9, 50.0, spent=1.0, now=1.5)  # sent before that one
    shot = one.snapshot("m", "requests", 11.0)
    assert shot is not None
    assert (shot.limit, shot.remaining, shot.reset_s) == (60, 4.0, 10.0)
    assert (shot.wait_s, shot.believed) == (0.0, True)
    one.charge(20.0, 11.0)
    shot = one.snapshot("m", "requests", 11.0)
    assert shot is not None
    assert shot.remaining == 0.0
    assert shot.wait_s == pytest.approx(one.free_s - 11.0)
    assert shot.wait_s > 0.0
    shot = one.snapshot("m", "requests", 21.0)
    assert shot is not None
    assert (shot.remaining, shot.reset_s) == (60.0, 0.0)


def test_header_limit_without_a_reset_or_a_limit_is_out_of_date_in_a_minute() -> None:
    """Without a reset an answer is out of date after a minute; without an answer nothing is known
    to be left."""
    one = header_limit()
    one.update(None, 7, None, 0.0, 0.0)
    for now, reset_s in ((0.0, 60.0), (59.0, 1.0), (61.0, 0.0)):
        shot = one.snapshot("m", "tokens", now)
        assert shot is not None
        assert (shot.limit, shot.remaining, shot.reset_s) == (0, 7.0, reset_s)
    one = header_limit()
    one.update(600, None, None, 0.0, 0.0)
    shot = one.snapshot("m", "tokens", 0.0)
    assert shot is not None
    assert (shot.limit, shot.remaining) == (600, None)


def test_account_limits_snapshot_has_served_models_alone() -> None:
    """A snapshot has at most two entries per served model, by the provider's name."""
    every = AccountLimits({"a": "x", "b": "y"})
    for model in ("a", "b"):
        one = every.open(model)
        assert one is not None
        one.update(RateLimits(600, 5, 1.0, 6000, 50, 1.0), 0.0, 0.0, 0.0)
    told_of = [(shot.model, shot.kind) for shot in every.snapshot(0.0)]
    assert told_of == [("x", "requests"), ("x", "tokens"), ("y", "requests"), ("y", "tokens")]
    every.configure({"b": "y"})
    assert {shot.model for shot in every.snapshot(0.0)} == {"y"}
