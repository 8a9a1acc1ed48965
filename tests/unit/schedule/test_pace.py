from __future__ import annotations

import pytest

from gateway.schedule.pace import HOPE, KEEP, MEMORY, SURE, Pace


def test_pace_knows_nothing_before_something_has_finished() -> None:
    """A pace without completions is None."""
    it = Pace()
    assert (it.token_s, it.clear_s(100.0, 3), it.slowdown, it.drop_ratio) == (None, None, 1.0, 0.0)
    assert (it.mean_reserve, it.mean_ln_short, it.starts, it.completions) == (0.0, 0.0, 0, 0)
    it.finished(0.0, 1.0, 0.0, 1)
    assert it.token_s is None, "an empty answer says nothing of tokens"


def test_pace_is_seconds_per_token_of_a_stream_times_streams() -> None:
    """Ten streams of 0.1 s a token clear a thousand tokens in ten seconds."""
    it = Pace()
    for _ in range(200):
        it.finished(100.0, 10.0, 0.0, 10)
    assert it.token_s == pytest.approx(0.1)
    assert it.clear_s(1000.0, 4) == pytest.approx(10.0)
    assert it.clear_s(1000.0, 20) == pytest.approx(5.0), "there are more at work now"


def test_pace_forgets_by_completions_not_by_time() -> None:
    """A provider that got slow is believed after some answers, whether they take seconds or
    hours."""
    for unit in (0.01, 100.0):
        it = Pace()
        for _ in range(300):
            it.finished(100.0, 10.0 * unit, 0.0, 1)
        for _ in range(MEMORY):
            it.finished(100.0, 20.0 * unit, 0.0, 1)
        assert it.token_s is not None
        assert it.token_s / unit == pytest.approx(0.1 + 0.1 * 0.63, rel=0.03)


def test_pace_is_sure_after_some_completions() -> None:
    """Before some completions no prediction refuses a job."""
    it = Pace()
    for n in range(SURE):
        assert it.sure is False, n
        it.finished(1.0, 1.0, 1.0, 1)
    assert it.sure


def test_pace_slowdown_is_what_waiting_adds() -> None:
    """Slowdown is (wait + service) / service."""
    it = Pace()
    it.finished(10.0, 2.0, 6.0, 1)
    assert it.slowdown == pytest.approx(4.0)
    it = Pace()
    it.finished(10.0, 0.5, 1.0, 1)
    assert it.slowdown == pytest.approx(3.0), "of answers within a second too"


def test_pace_counts_what_the_provider_refused_lately() -> None:
    """Drops are a share of attempts, and fade."""
    it = Pace()
    for n in range(400):
        it.attempted(dropped=n % 4 == 0)
    assert it.drop_ratio == pytest.approx(0.25, abs=0.02)
    for _ in range(3 * MEMORY):
        it.attempted(dropped=False)
    assert it.drop_ratio < 0.02


def test_pace_mean_reserve_is_plain_at_first() -> None:
    """The mean reserve is a plain mean at first and then follows the last starts."""
    it = Pace()
    for reserve in (10, 20, 30):
        it.started(reserve, -reserve / 10)
    assert it.mean_reserve == pytest.approx(20.0)
    assert it.mean_ln_short == pytest.approx(-2.0)
    for _ in range(6 * MEMORY):
        it.started(100, -0.5)
    assert it.mean_reserve == pytest.approx(100.0, rel=0.01)
    assert it.mean_ln_short == pytest.approx(-0.5, rel=0.01)


def test_pace_forgets_attempts_at_the_same_rate_as_completions() -> None:
    """After MEMORY good attempts the drops of a provider that refused everything are down to
    1/e."""
    it = Pace()
    for _ in range(10 * MEMORY):
        it.attempted(dropped=True)
    assert it.drop_ratio == pytest.approx(1.0)
    for _ in range(MEMORY):
        it.attempted(dropped=False)
    assert it.drop_ratio == pytest.approx(0.365, abs=0.005)


def test_pace_says_nothing_of_drops_after_a_few_attempts() -> None:
    """The drop ratio is 0 up to SURE attempts, then the share of all of them."""
    it = Pace()
    for n in range(2 * SURE):
        assert it.drop_ratio == (0.0 if it.attempts <= SURE else pytest.approx(1.0)), n
        it.attempted(dropped=True)
    assert it.attempts == pytest.approx(it.drops)
    assert it.drop_ratio == pytest.approx(1.0)


def test_pace_mean_reserve_follows_the_last_ones_at_its_memory() -> None:
    """After MEMORY starts of another size the mean has gone two thirds of the way."""
    it = Pace()
    for _ in range(10 * MEMORY):
        it.started(100, 0.0)
    for _ in range(MEMORY):
        it.started(200, 0.0)
    assert it.mean_reserve == pytest.approx(163.5, abs=0.5)
    assert it.starts == 11 * MEMORY


def test_pace_doubts_itself_by_refusals_and_believes_again_by_completions() -> None:
    """Each refusal makes the estimate by which a job is refused more hopeful, and no other one."""
    it = Pace()
    it.finished(100.0, 10.0, 0.0, 1)
    assert it.hopeful_token_s == it.token_s == pytest.approx(0.1)
    for _ in range(MEMORY):
        it.doubted()
    assert it.hopeful_token_s == pytest.approx(0.0365, abs=0.0005)
    assert it.token_s == pytest.approx(0.1)
    for _ in range(5):
        it.finished(100.0, 10.0, 0.0, 1)
    assert it.hopeful_token_s == pytest.approx(0.0365 * HOPE**5, abs=0.001)
    for _ in range(20):
        it.finished(100.0, 10.0, 0.0, 1)
    assert it.hopeful_token_s == pytest.approx(0.1), "in full again, and not more"


def test_pace_ignores_doubts_before_it_has_measured() -> None:
    """A doubt of an unknown pace changes nothing."""
    it = Pace()
    it.doubted()
    assert it.hopeful_token_s is None


def test_pace_counts_the_streams_of_late_or_of_now() -> None:
    """The streams are those of late or of now, whichever are more; one where nothing runs."""
    it = Pace()
    assert it.streams(0) == 1.0
    assert it.streams(3) == 3.0
    for _ in range(20):
        it.finished(100.0, 10.0, 0.0, 6)
    assert it.streams(0) == pytest.approx(6.0)
    assert it.streams(9) == 9.0


def test_pace_is_known_of_the_smallest_answer_that_took_time() -> None:
    """One token in half a second is a pace; tokens in no time are none."""
    it = Pace()
    it.finished(1.0, 0.5, 0.0, 1)
    assert it.token_s == pytest.approx(0.5)
    it = Pace()
    it.finished(10.0, 0.0, 0.0, 1)
    assert it.token_s is None


def test_pace_takes_no_credit_for_completions_without_a_doubt() -> None:
    """Completions take doubts back and save up nothing against the next doubt."""
    it = Pace()
    for _ in range(50):
        it.finished(100.0, 10.0, 0.0, 1)
    it.doubted()
    assert it.hopeful_token_s == pytest.approx(0.1 * KEEP)
