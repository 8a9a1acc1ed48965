from __future__ import annotations

from gateway.balance.pacer import BURST_S, Meter, Pacer


def spend(meter: Meter, amount: float, until_s: float) -> float:
    """Charges as often as the meter allows; the amount spent by then."""
    now, spent = 0.0, 0.0
    while now <= until_s:
        meter.charge(amount, now)
        spent += amount
        now = max(now, meter.free_s)
    return spent


def test_meter_holds_the_rate_over_a_minute() -> None:
    """A minute spends at most the limit, the burst and the charge that crosses the line."""
    assert 60 <= spend(Meter(60), 1.0, 60.0) <= 60 * (60 + BURST_S) / 60 + 1
    assert 6000 <= spend(Meter(6000), 900.0, 60.0) <= 6000 * (60 + BURST_S) / 60 + 900


def test_meter_lets_a_charge_larger_than_its_burst_through() -> None:
    """A charge that exceeds the burst is let through, and later ones wait until it has drained."""
    meter = Meter(600)
    meter.charge(100.0, 0.0)
    assert meter.free_s == 10.0 - BURST_S


def test_meter_is_free_again_exactly_at_free_s() -> None:
    """At `free_s` the next charge may come, not a moment earlier or later."""
    meter = Meter(7)
    for _ in range(5):
        meter.charge(1.0, 1e6)
    at = meter.free_s
    meter.charge(0.0, at)
    assert meter.free_s <= at


def test_meter_gives_back_what_was_charged_too_much() -> None:
    """A correction shortens the wait but does not give back time that has passed."""
    meter = Meter(60)
    meter.charge(10.0, 0.0)
    meter.charge(-8.0, 1.0)
    assert meter.free_s == 2.0 - BURST_S
    meter.charge(-100.0, 1.0)
    meter.charge(1.0, 5.0)
    assert meter.free_s == 6.0 - BURST_S


def test_meter_without_a_limit_never_waits() -> None:
    """A limit of 0 is no limit."""
    meter = Meter(0)
    meter.charge(1e9, 0.0)
    assert meter.free_s == float("-inf")


def test_pacer_waits_for_the_slower_of_its_two_meters() -> None:
    """The later of requests and tokens counts."""
    by_requests = Pacer(rpm=6, tpm=60_000)
    by_requests.charge(10.0, 0.0)
    assert by_requests.free_s == 10.0 - BURST_S
    by_tokens = Pacer(rpm=600, tpm=600)
    by_tokens.charge(100.0, 0.0)
    assert by_tokens.free_s == 10.0 - BURST_S
    by_tokens.correct(-90.0, 0.0)
    assert by_tokens.free_s == 1.0 - BURST_S


def test_pacer_takes_a_new_limit_and_keeps_its_debt() -> None:
    """A reload keeps the debt; one from no limit to a limit begins without."""
    pacer = Pacer(0, 0)
    pacer.charge(1000.0, 0.0)
    pacer.configure(60, 0)
    assert pacer.free_s < 0.0
    pacer.charge(0.0, 0.0)
    pacer.charge(0.0, 0.0)
    assert pacer.free_s == 2.0 - BURST_S
    pacer.configure(60, 600)
    assert pacer.free_s == 2.0 - BURST_S


def test_meter_takes_a_level_it_is_given() -> None:
    """A level may be spent at once, at most the burst; a level of 0 reduces no larger debt."""
    meter = Meter(60, burst_s=10.0)
    meter.set_level(3.0, 100.0)
    meter.charge(3.0, 100.0)
    assert meter.free_s == 100.0
    meter.set_level(1000.0, 100.0)
    meter.charge(10.0, 100.0)
    assert meter.free_s == 100.0
    meter.charge(30.0, 100.0)
    meter.set_level(-5.0, 100.0)
    assert meter.free_s == 130.0


def test_meter_takes_levels_below_one_and_none_as_they_are() -> None:
    """Half a charge may be spent as half of one; a level of 0 lets the next charge through, and
    none after it; from the smallest level on an earlier debt is forgotten."""
    for level, free_s in ((0.5, 100.5), (0.0, 101.0), (-5.0, 101.0), (1.0, 100.0)):
        meter = Meter(60, burst_s=10.0)
        meter.set_level(level, 100.0)
        meter.charge(1.0, 100.0)
        assert meter.free_s == free_s, level
    for level, free_s in ((0.5, 99.5), (1.0, 99.0), (0.0, 130.0)):
        meter = Meter(60, burst_s=10.0)
        meter.charge(40.0, 100.0)
        meter.set_level(level, 100.0)
        assert meter.free_s == free_s, level
