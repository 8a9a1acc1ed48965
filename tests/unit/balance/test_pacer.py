from __future__ import annotations

from gateway.balance.pacer import (
    BURST_S,
    LEARNED_BURST_S,
    MAX_HOLD_S,
    PATIENCE,
    Meter,
    Pacer,
)
from gateway.types import RateLimits


def spend(meter: Meter, amount: float, until_s: float) -> float:
    """Charges as often as may be; what was spent by then."""
    now, spent = 0.0, 0.0
    while now <= until_s:
        meter.charge(amount, now)
        spent += amount
        now = max(now, meter.free_s)
    return spent


def test_meter_holds_the_rate_over_a_minute() -> None:
    """At most a minute's limit, the burst and the one that crosses the line."""
    assert 60 <= spend(Meter(60), 1.0, 60.0) <= 60 * (60 + BURST_S) / 60 + 1
    assert 6000 <= spend(Meter(6000), 900.0, 60.0) <= 6000 * (60 + BURST_S) / 60 + 900


def test_meter_lets_a_charge_larger_than_its_burst_through() -> None:
    """The one that crosses the line goes; those behind it wait until it has drained."""
    meter = Meter(600)
    meter.charge(100.0, 0.0)
    assert meter.free_s == 10.0 - BURST_S


def test_meter_is_free_again_exactly_when_it_says() -> None:
    """`free_s` is the number the clock is compared with: no wake-up in vain."""
    meter = Meter(7)
    for _ in range(5):
        meter.charge(1.0, 1e6)
    at = meter.free_s
    meter.charge(0.0, at)
    assert meter.free_s <= at


def test_meter_gives_back_what_was_charged_too_much() -> None:
    """A correction shortens the wait, but cannot make up for time that has passed."""
    meter = Meter(60)
    meter.charge(10.0, 0.0)
    meter.correct(-8.0, 1.0)
    assert meter.free_s == 2.0 - BURST_S
    meter.correct(-100.0, 1.0)
    meter.charge(1.0, 5.0)
    assert meter.free_s == 6.0 - BURST_S


def test_meter_without_a_limit_never_waits() -> None:
    """0 is no limit."""
    meter = Meter(0)
    meter.charge(1e9, 0.0)
    assert meter.free_s == float("-inf")


def test_pacer_waits_for_the_slower_of_its_two_meters() -> None:
    """RPM and TPM both hold."""
    by_requests = Pacer(rpm=6, tpm=60_000)
    by_requests.charge(10.0, 0.0)
    assert by_requests.free_s == 10.0 - BURST_S
    by_tokens = Pacer(rpm=600, tpm=600)
    by_tokens.charge(100.0, 0.0)
    assert by_tokens.free_s == 10.0 - BURST_S
    by_tokens.correct(-90.0, 0.0)
    assert by_tokens.free_s == 1.0 - BURST_S


def test_pacer_takes_a_new_limit_and_keeps_its_debt() -> None:
    """A reload from no limit to one begins without debt."""
    pacer = Pacer(0, 0)
    pacer.charge(1000.0, 0.0)
    pacer.configure(60, 0)
    assert pacer.free_s < 0.0
    pacer.charge(0.0, 0.0)
    pacer.charge(0.0, 0.0)
    assert pacer.free_s == 2.0 - BURST_S
    pacer.configure(60, 600)
    assert pacer.free_s == 2.0 - BURST_S


def test_meter_learns_a_limit_and_lets_it_be_spent_at_once() -> None:
    """What a header says is left may be used now, then at the limit's pace."""
    meter = Meter(0)
    meter.charge(1.0, 0.0)
    meter.told(60, 59, 1.0, spent=1.0, now=0.1)
    for _ in range(59):
        assert meter.free_s <= 0.2
        meter.charge(1.0, 0.2)
    meter.charge(1.0, 0.2)
    assert 0.5 < meter.free_s < 2.0
    assert spend_rate(meter) == 60


def spend_rate(meter: Meter) -> int:
    """Charges of 1 in the minute after the meter is next free."""
    start = now = meter.free_s
    count = 0
    while now < start + 60.0 - 1e-6:
        meter.charge(1.0, now)
        count += 1
        now = max(now, meter.free_s)
    return count


def test_meter_takes_off_what_was_sent_since_that_request() -> None:
    """A header is stale by a round trip: 10 left, 9 sent meanwhile, one may go."""
    meter = Meter(0)
    for _ in range(10):
        meter.charge(1.0, 0.0)
    meter.told(60, 10, None, spent=1.0, now=1.0)
    assert meter.free_s <= 1.0
    meter.charge(2.0, 1.0)
    assert meter.free_s > 1.0


def test_meter_that_is_told_more_than_its_own_level_keeps_its_own() -> None:
    """The smaller of the two: a generous header does not lift a limit of the settings."""
    meter = Meter(60)
    meter.charge(10.0, 0.0)
    before = meter.free_s
    meter.told(6000, 5999, 0.0, spent=10.0, now=0.0)
    assert meter.free_s == before


def test_meter_of_the_settings_heeds_a_header_that_says_less() -> None:
    """Others use the same key: nothing left means a wait."""
    meter = Meter(60)
    meter.charge(1.0, 0.0)
    meter.told(60, 0, 20.0, spent=1.0, now=0.0)
    assert meter.free_s == 1.0


def test_meter_without_a_known_limit_waits_for_the_reset() -> None:
    """Nothing left and no limit told: until the reset, at most MAX_HOLD_S."""
    meter = Meter(0)
    meter.told(None, 0, 3.0, spent=0.0, now=10.0)
    assert meter.free_s == 13.0
    meter.told(None, 0, 86_400.0, spent=0.0, now=20.0)
    assert meter.free_s == 20.0 + MAX_HOLD_S


def test_meter_does_not_believe_absurd_limits() -> None:
    """One request a minute, while more than that is left: no limit is learned."""
    meter = Meter(0)
    meter.charge(1.0, 0.0)
    meter.told(1, 1, 60.0, spent=1.0, now=0.0)
    assert (meter.learned, meter.free_s) == (0, float("-inf"))


def served_by_a_liar(limit: int | None, seconds: float, *, refuses: bool = False) -> int:
    """Requests in `seconds` to a provider that serves all and always says "0 left"."""
    meter, now, served = Meter(0), 0.0, 0
    while now < seconds:
        meter.charge(1.0, now)
        served += 1
        if refuses:
            meter.refused()
        meter.told(limit, 0, 60.0, meter.spent, now)
        now = max(now + 0.01, meter.free_s)
    return served


def test_meter_sees_through_a_header_that_always_says_nothing_left() -> None:
    """Served again and again, it is not listened to any more: traffic flows within minutes."""
    for limit in (None, 1, 60, 10**9):
        assert served_by_a_liar(limit, 300.0) > 10_000, limit


def test_meter_goes_on_heeding_a_header_that_is_right() -> None:
    """The twin: where a 429 confirms it, every hold is as long as it says."""
    assert served_by_a_liar(None, 300.0, refuses=True) == 300.0 / MAX_HOLD_S
    assert served_by_a_liar(60, 300.0, refuses=True) <= 301


def test_meter_trusts_again_after_a_refusal() -> None:
    """A 429 gives a disbelieved header its full say."""
    meter, now = Meter(0), 0.0
    for _ in range(20):
        meter.charge(1.0, now)
        meter.told(None, 0, 60.0, meter.spent, now)
        now += 60.0
    assert meter.free_s < now
    meter.refused()
    meter.told(None, 0, 60.0, meter.spent, now)
    assert meter.free_s == now + MAX_HOLD_S


def test_pacer_learns_both_limits_and_keeps_them_for_a_restart() -> None:
    """From headers where the settings have none; restored they hold at once."""
    pacer = Pacer(0, 0)
    pacer.charge(100.0, 0.0)
    pacer.told(RateLimits(600, 599, 0.1, 60_000, 59_900, 0.1), 1.0, 100.0, 0.5)
    assert (pacer.requests.learned, pacer.tokens.learned) == (600, 60_000)
    again = Pacer(0, 0)
    again.restore(600, 60_000)
    again.charge(120_000.0, 0.0)
    assert again.free_s == 120.0 - LEARNED_BURST_S


def test_meter_believes_a_while_and_then_half_as_long_each_time() -> None:
    """PATIENCE whole holds that were followed by service, then halves, then none."""
    meter, now, holds = Meter(0), 0.0, []
    for _ in range(PATIENCE + 5):
        meter.charge(1.0, now)
        meter.told(None, 0, 60.0, meter.spent, now)
        holds.append(max(0.0, meter.free_s - now))
        now += 60.0
    halves = [MAX_HOLD_S / 2**n for n in (1, 2, 3)]
    assert holds == [MAX_HOLD_S] * PATIENCE + halves + [0.0, 0.0]


def test_meter_does_not_doubt_for_answers_to_what_was_sent_before() -> None:
    """Ten answers to one burst that say "nothing left" are one such word."""
    meter = Meter(0)
    for n in range(10):
        meter.charge(1.0, n / 10)
    for n in range(10):
        meter.told(None, 0, 60.0, n + 1.0, 2.0)
    assert meter.free_s == 2.0 + MAX_HOLD_S


def test_meter_believes_more_again_by_answers_that_leave_something() -> None:
    """Twice as much for each; and the row of the others begins anew."""
    meter, now = Meter(0), 0.0
    for _ in range(PATIENCE + 2):
        meter.charge(1.0, now)
        meter.told(None, 0, 60.0, meter.spent, now)
        now += 60.0
    holds = []
    for left in (5, 0, 5, 0, 0, 0, 0, 0):
        meter.charge(1.0, now)
        meter.told(None, left, 60.0, meter.spent, now)
        holds.append(max(0.0, meter.free_s - now))
        now += 60.0
    assert holds == [0.0, MAX_HOLD_S / 2, 0.0, *[MAX_HOLD_S] * 4, MAX_HOLD_S / 2]


def test_meter_whose_limit_was_taken_away_is_free() -> None:
    """A reload to no limit does not leave anybody waiting for an old debt."""
    meter = Meter(60)
    meter.charge(1000.0, 0.0)
    assert meter.free_s == 1000.0 - BURST_S
    assert meter.given_free_s == meter.free_s
    meter.configure(0)
    assert meter.free_s == meter.given_free_s == float("-inf")


def test_meter_knows_the_settings_part_of_its_wait() -> None:
    """What a header holds back is not in it."""
    meter = Meter(60)
    meter.charge(1.0, 0.0)
    meter.told(None, 0, 10.0, spent=1.0, now=0.0)
    assert (meter.free_s, meter.given_free_s) == (1.0, 1.0 - BURST_S)
    learned = Meter(0)
    learned.charge(1.0, 0.0)
    learned.told(60, 1, 10.0, spent=1.0, now=0.0)
    learned.charge(500.0, 0.0)
    assert learned.free_s > 100.0
    assert learned.given_free_s == float("-inf")


def test_meter_holds_until_one_is_left_at_the_limits_pace() -> None:
    """Nothing left of 60 a minute: a second; two short of it: three; at most to the reset."""
    for sent, reset_s, wait_s in ((0.0, None, 1.0), (2.0, None, 3.0), (2.0, 0.5, 0.5)):
        meter = Meter(0)
        meter.told(60, 60, None, spent=0.0, now=0.0)
        meter.charge(1.0, 0.0)
        meter.charge(sent, 0.0)
        meter.told(60, 0, reset_s, spent=1.0, now=5.0)
        assert meter.free_s - 5.0 == wait_s, (sent, reset_s)


def test_pacer_heeds_each_header_at_its_own_meter() -> None:
    """Requests left and tokens left are two things; limits below the floor teach neither."""
    for given, free_s in (
        (RateLimits(remaining_requests=0, reset_requests_s=4.0), 4.0),
        (RateLimits(remaining_tokens=0, reset_tokens_s=6.0), 6.0),
        (RateLimits(remaining_requests=5, remaining_tokens=5), float("-inf")),
        (RateLimits(limit_requests=9, limit_tokens=999, reset_tokens_s=5.0), float("-inf")),
    ):
        pacer = Pacer(0, 0)
        pacer.charge(100.0, 0.0)
        pacer.told(given, 1.0, 100.0, 0.0)
        assert pacer.free_s == free_s, given
        assert (pacer.requests.learned, pacer.tokens.learned) == (0, 0)
    pacer.told(RateLimits(limit_requests=10, limit_tokens=1000), 1.0, 100.0, 0.0)
    assert (pacer.requests.learned, pacer.tokens.learned) == (10, 1000)


def test_pacer_knows_the_settings_part_of_both() -> None:
    """The later of the two."""
    pacer = Pacer(60, 600)
    pacer.charge(100.0, 0.0)
    assert pacer.given_free_s == 10.0 - BURST_S
    pacer = Pacer(6, 600)
    pacer.charge(10.0, 0.0)
    assert pacer.given_free_s == 10.0 - BURST_S


def test_pacer_trusts_both_headers_again_after_a_429() -> None:
    """It does not say which of them was right."""
    for field in ("requests", "tokens"):
        pacer, now = Pacer(0, 0), 0.0
        nothing = RateLimits(**{f"remaining_{field}": 0, f"reset_{field}_s": 60.0})
        for _ in range(20):
            pacer.charge(1.0, now)
            pacer.told(nothing, pacer.requests.spent, pacer.tokens.spent, now)
            now += 60.0
        assert pacer.free_s < now
        pacer.refused()
        pacer.told(nothing, pacer.requests.spent, pacer.tokens.spent, now)
        assert pacer.free_s == now + MAX_HOLD_S, field


def test_meter_that_had_nothing_left_goes_on_at_its_pace() -> None:
    """What comes after a hold has not been saved up: no burst of a minute's worth."""
    meter = Meter(0)
    meter.told(60, 60, None, spent=0.0, now=0.0)
    meter.charge(1.0, 0.0)
    meter.told(60, 0, 1.0, spent=1.0, now=5.0)
    assert meter.free_s == 6.0
    for _ in range(5):
        meter.charge(1.0, 6.0)
    assert meter.free_s == 10.0
