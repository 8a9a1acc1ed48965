from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from msgspec.structs import replace

from gateway.balance.curve import Floats
from gateway.balance.evidence import (
    FORGET,
    LEAST_BASE,
    NOISE,
    PRIOR,
    Evidence,
    Sample,
    UnloadedLatency,
)
from gateway.balance.saved_state import SavedWindow

WINDOW = 16.0
TRUE = (0.5, 0.001, 0.02)  # seconds: an empty request, a prompt token, an output token


def sizes(count: int, seed: int = 1) -> list[tuple[float, float]]:
    rng = Random(seed)
    return [(rng.uniform(20, 800), rng.lognormvariate(4.8, 1.0)) for _ in range(count)]


def truth(n: float, count: int = 10, seed: int = 1, noise: float = 0.0) -> list[Sample]:
    """Answers of a provider that slows down by 1 + N/12."""
    rng = Random(seed)
    return [
        Sample(
            n,
            0.0,
            (TRUE[0] + TRUE[1] * prompt + TRUE[2] * output)
            * (1 + n / 12)
            * rng.lognormvariate(0.0, noise),
            prompt,
            output,
        )
        for prompt, output in sizes(count, seed)
    ]


def taught(rounds: int = 40, noise: float = 0.0) -> Evidence:
    it = Evidence()
    for n in range(rounds):
        it.look(truth((2.0, 4.0, 8.0, 16.0)[n % 4], seed=n, noise=noise), WINDOW)
    return it


def expected(it: Evidence, n: float, errors: float, count: int = 8) -> list[Sample]:
    """Answers that are so many standard errors slower than `it` expects at `n` in flight."""
    base, per_prompt, per_output = it.coefficients
    assert it.posterior is not None
    slowdown = math.exp(float(it.posterior.slowdown_at(np.log([n]))[0]))
    factor = math.exp(errors * it.to_save("m", WINDOW).noise / math.sqrt(count))
    return [
        Sample(n, 0.0, (base + per_prompt * p + per_output * o) * slowdown * factor, p, o)
        for p, o in sizes(count, 99)
    ]


def mass(it: Evidence) -> float:
    return sum(it.to_save("m", WINDOW).weights)


def test_evidence_finds_sizes_slowdown_and_curve_together() -> None:
    """Unloaded seconds, curve and recent slowdown are found together."""
    it = taught()
    for prompt, output in ((100.0, 50.0), (400.0, 300.0), (20.0, 900.0)):
        found = sum(np.array(it.coefficients) * (1.0, prompt, output))
        assert found == pytest.approx(sum(np.array(TRUE) * (1.0, prompt, output)), rel=0.12)
    assert it.alone_s == pytest.approx(0.5 + 0.25 + 5.0, rel=0.1)
    assert it.posterior is not None
    at = it.posterior.slowdown_at(np.log([2.0, 16.0]))
    assert math.exp(at[1] - at[0]) == pytest.approx((1 + 16 / 12) / (1 + 2 / 12), rel=0.05)
    assert it.explored() == pytest.approx(16.0, rel=0.05)
    assert (it.has_evidence_below(2.0), it.has_evidence_below(1.0)) == (True, False)


def test_evidence_is_empty_before_the_first_look() -> None:
    """Fresh evidence has no posterior, no seconds, no slowdown and no hope."""
    it = Evidence()
    assert (it.posterior, it.alone_s, it.slowdown, it.hopeful) == (None, 0.0, 1.0, False)
    assert it.coefficients == (0.0, 0.0, 0.0)
    assert it.curve.regime == "unknown"
    assert it.look(truth(4.0), WINDOW) is False, "the first is no surprise"


def test_evidence_measures_the_recent_slowdown() -> None:
    """The recent slowdown is latency over unloaded latency, whatever the sizes, and follows the
    load."""
    it = taught()
    for n in (8.0, 2.0):
        for seed in range(30):
            it.look(truth(n, seed=seed), WINDOW)
        assert it.slowdown == pytest.approx(1 + n / 12, rel=0.1)


def test_evidence_learns_how_noisy_a_provider_is() -> None:
    """The standard deviation of log latencies is learned, within its bounds."""
    assert taught(80, 0.25).to_save("m", 1.0).noise == pytest.approx(0.25, rel=0.2)
    assert taught(80, 0.0).to_save("m", 1.0).noise == NOISE[0]


def test_evidence_of_an_unsteady_number_in_flight_counts_less() -> None:
    """A sample counts half where the number in flight moved by an eighth of itself."""
    it = Evidence()
    it.look([replace(s, deviation=0.12 * s.inflight) for s in truth(8.0)], WINDOW)
    assert mass(it) == pytest.approx(5.0)
    it = Evidence()
    it.look([replace(s, inflight=0.5) for s in truth(1.0)], WINDOW)
    assert it.explored() == 1.0, "a request is never less than alone"


@pytest.mark.parametrize(
    ("n", "errors", "surprised", "better"),
    [
        (8.0, 4 * 3.5, False, False),
        (8.0, 4 * -3.5, False, False),
        (8.0, 4 * 5.0, True, False),
        (8.0, 4 * -5.0, True, True),
        (20.0, 3.5, False, False),
        (20.0, 4.8, True, False),
        (20.0, -2.5, False, False),
        (20.0, -3.7, True, True),
        (16.5, -3.5, False, False),
    ],
)
def test_evidence_is_dropped_where_latencies_contradict_it(
    n: float, errors: float, surprised: bool, better: bool
) -> None:
    """Evidence is dropped at four standard errors, and at three where latencies above the window
    are better; only better ones are reported."""
    it = taught()
    before = mass(it)
    assert it.look(expected(it, n, errors), WINDOW) is better
    assert (mass(it) < 2 * FORGET * before) is surprised
    if surprised:
        assert not it.hopeful, "what led to a surprise does not lead to the next one"
        left = mass(it)
        assert it.look(expected(it, n, 0.0), WINDOW) is False
        assert mass(it) > left


def test_evidence_is_hopeful_before_it_is_surprised() -> None:
    """Two standard errors better above the window are hope; elsewhere, and for worse, there is
    none."""
    for n, errors, hopeful in ((20.0, -2.6, True), (20.0, -1.2, False), (20.0, 2.6, False),
                               (8.0, -2.6, False)):  # fmt: skip
        it = taught()
        it.look(expected(it, n, errors), WINDOW)
        assert it.hopeful is hopeful, (n, errors)


def test_evidence_may_hope_from_its_second_look_on() -> None:
    """Hope is possible from the second look on."""
    it = Evidence()
    it.look(truth(4.0), WINDOW)
    it.look(expected(it, 20.0, -2.9), WINDOW)
    assert it.hopeful
    it = Evidence()
    it.look(truth(4.0), WINDOW)
    assert it.look(expected(it, 8.0, -5.0), WINDOW), "nor against a surprise below the window"


def test_evidence_forgets_surprises_by_completions() -> None:
    """Small surprises add up unless expected latencies come between them."""
    it = taught()
    assert not any(it.look(expected(it, 20.0, -1.6), WINDOW) for _ in range(2))
    assert it.hopeful
    for _ in range(25):
        it.look(expected(it, 20.0, 0.0), WINDOW)
    assert not it.hopeful


def test_evidence_is_not_carried_away_by_one_answer() -> None:
    """One latency a hundred times too long neither drops the evidence nor moves it far."""
    it = taught()
    before, alone_s = mass(it), it.alone_s
    batch = truth(8.0)
    batch[0] = replace(batch[0], latency_s=100.0 * batch[0].latency_s)
    it.look(batch, WINDOW)
    assert mass(it) > 0.5 * before
    assert it.alone_s == pytest.approx(alone_s, rel=0.1)


def test_evidence_fades_near_and_stays_far() -> None:
    """Evidence near the present N fades with the rounds; elsewhere it stays."""
    it = taught()
    far = it.to_save("m", WINDOW).weights[1]
    for seed in range(200):
        it.look(truth(16.0, seed=seed), WINDOW)
    weights = it.to_save("m", WINDOW).weights
    assert 0.2 * far < weights[1] < 0.4 * far, "2,000 samples are 1.25 of its memory"
    near = sum(weights[12:])
    assert near == pytest.approx(30 * WINDOW, rel=0.05), "30 rounds"


def test_evidence_comes_back_from_storage() -> None:
    """Restored evidence has a share of its weight, its curve, its seconds and noise within
    bounds."""
    it = taught(noise=0.2)
    stored = it.to_save("m", 12.0)
    assert (stored.model, stored.window) == ("m", 12.0)
    again = Evidence()
    again.restore(stored, 0.7)
    assert mass(again) == pytest.approx(0.7 * mass(it))
    assert again.alone_s == pytest.approx(it.alone_s, rel=0.05)
    assert again.to_save("m", 1.0).noise == pytest.approx(stored.noise)
    for noise, held in ((5.0, NOISE[1]), (0.001, NOISE[0])):
        again.restore(replace(stored, noise=noise), 0.7)
        assert again.to_save("m", 1.0).noise == pytest.approx(held)


@pytest.mark.parametrize(
    "broken",
    [
        {"noise": 0.0},
        {"noise": float("nan")},
        {"coefficients": (0.0, 0.0, 0.0)},
        {"coefficients": (math.inf, 0.0, 0.0)},
        {"weights": (1.0,)},
    ],
)
def test_evidence_refuses_damaged_state(broken: dict[str, object]) -> None:
    """Damaged evidence raises and changes nothing."""
    stored: SavedWindow = taught(8).to_save("m", 12.0)
    it = Evidence()
    with pytest.raises(ValueError, match=r"^(learned|bins): "):
        it.restore(replace(stored, **broken), 0.7)
    assert it.posterior is None


def batches(
    count: int, truth: tuple[float, float, float], noise: float = 0.3
) -> list[tuple[Floats, Floats]]:
    rng = np.random.default_rng(2)
    made = []
    for _ in range(count):
        prompt, output = rng.lognormal(4.8, 1.0, 16), rng.lognormal(5.0, 1.2, 16)
        sizes = np.column_stack([np.ones(16), prompt, output])
        made.append((sizes, sizes @ np.array(truth) * rng.lognormal(0.0, noise, 16)))
    return made


@pytest.mark.parametrize("truth", [(0.05, 0.0, 0.1), (2.0, 0.0, 0.002), (0.5, 0.001, 0.02)])
def test_unloaded_finds_the_coefficients_of_an_unknown_provider(
    truth: tuple[float, float, float],
) -> None:
    """A few hundred noisy latencies give small and large sizes within a fifth."""
    it = UnloadedLatency()
    for sizes, latency_s in batches(20, truth):
        it.learn(sizes, latency_s, 1.0)
    for size in ([1.0, 20.0, 10.0], [1.0, 200.0, 200.0], [1.0, 200.0, 1500.0]):
        assert float(it.of(np.array([size]))[0]) == pytest.approx(np.array(size) @ truth, rel=0.2)
    assert it.theta.min() >= 0.0


def test_unloaded_does_not_follow_outliers() -> None:
    """One latency in sixteen that is a hundred times as long moves the fit by less than a third."""
    it = UnloadedLatency()
    for sizes, latency_s in batches(20, (0.5, 0.0, 0.02)):
        latency_s[0] *= 100.0
        it.learn(sizes, latency_s, 1.0)
    assert float(it.of(np.array([[1.0, 200.0, 200.0]]))[0]) == pytest.approx(4.5, rel=0.33)


def test_unloaded_forgets() -> None:
    """A provider that becomes twice as slow is followed, and the change is returned."""
    it = UnloadedLatency()
    moved = 0.0
    for sizes, latency_s in batches(20, (0.5, 0.0, 0.02)):
        it.learn(sizes, latency_s, 0.9)
    for sizes, latency_s in batches(40, (1.0, 0.0, 0.04)):
        moved += it.learn(sizes, latency_s, 0.9)
    assert moved == pytest.approx(np.log(2.0), abs=0.15)
    assert float(it.of(np.array([[1.0, 200.0, 200.0]]))[0]) == pytest.approx(9.0, rel=0.2)


def test_unloaded_restored_is_soon_overruled() -> None:
    """Restored coefficients hold until new samples outweigh them."""
    it = UnloadedLatency()
    it.restore((5.0, 0.0, 0.2))
    assert float(it.of(np.array([[1.0, 0.0, 0.0]]))[0]) == 5.0
    for sizes, latency_s in batches(20, (0.5, 0.0, 0.02)):
        it.learn(sizes, latency_s, 1.0)
    assert float(it.of(np.array([[1.0, 200.0, 200.0]]))[0]) == pytest.approx(4.5, rel=0.2)


def test_unloaded_latency_of_an_empty_request_is_above_zero() -> None:
    """The base stays above 0 even if all time is in the output tokens."""
    it = UnloadedLatency()
    for sizes, latency_s in batches(20, (0.0, 0.0, 0.1), noise=0.0):
        it.learn(sizes, latency_s, 1.0)
    assert it.theta[0] == pytest.approx(LEAST_BASE * latency_s.mean(), rel=0.05)
    empty = np.array([[1.0, 0.0, 0.0]])
    assert float(it.of(empty)[0]) > 0.0
    it.learn(np.repeat(empty, 16, axis=0), np.full(16, 0.01), 1.0)
    assert np.isfinite(it.theta).all()


def test_unloaded_counts_fresh_samples_alone() -> None:
    """The count is of faded samples; restored coefficients count for almost none."""
    it = UnloadedLatency()
    for n, (sizes, latency_s) in enumerate(batches(3, (0.5, 0.0, 0.02))):
        it.learn(sizes, latency_s, 0.5)
        assert it.count == pytest.approx((16.0, 24.0, 28.0)[n])
    it.restore((5.0, 0.0, 0.2))
    it.learn(*batches(1, (0.5, 0.0, 0.02))[0], 0.5)
    assert it.count == pytest.approx(16.0)


def test_unloaded_scales_its_guess_by_the_first_latencies() -> None:
    """One batch sets the scale; the proportions stay the prior's until more samples come."""
    it = UnloadedLatency()
    sizes = np.repeat(np.array([[1.0, 100.0, 50.0]]), 4, axis=0)
    moved = it.learn(sizes, np.full(4, 31.0), 1.0)
    assert float(it.of(sizes[:1])[0]) == pytest.approx(31.0, rel=0.02)
    assert it.theta[2] / it.theta[0] == pytest.approx(PRIOR[2] / PRIOR[0], rel=0.3)
    before = float(sizes[0] @ PRIOR)
    assert moved == pytest.approx(np.log(31.0 / before), rel=0.02)


def test_unloaded_clips_a_latency_at_both_ends() -> None:
    """A latency much too short moves the fit no more than one much too long."""
    moved = []
    for factor in (1e-4, 1e4):
        it = UnloadedLatency()
        for sizes, latency_s in batches(20, (0.5, 0.0, 0.02), noise=0.0):
            it.learn(sizes, latency_s, 1.0)
        sizes, latency_s = batches(1, (0.5, 0.0, 0.02), noise=0.0)[0]
        moved.append(it.learn(sizes, latency_s * factor, 1.0))
    assert -0.08 < moved[0] < -0.01
    assert 0.01 < moved[1] < 0.12


def test_unloaded_leaves_out_what_would_be_negative() -> None:
    """A coefficient that would be negative is 0, and the others are fitted without it."""
    it = UnloadedLatency()
    for sizes, _ in batches(40, (0.0, 0.0, 0.0)):
        latency_s = np.maximum(3.0 - 0.002 * sizes[:, 1], 0.5) + 0.02 * sizes[:, 2]
        it.learn(sizes, latency_s, 1.0)
    assert it.theta[1] == 0.0
    assert it.theta[2] == pytest.approx(0.02, rel=0.15)
    assert 1.5 < it.theta[0] < 3.0


def test_evidence_begins_anew_after_a_surprise() -> None:
    """After a surprise of slower answers as many better ones give hope as before it."""
    it = taught()
    it.look(expected(it, 20.0, 4.8), WINDOW)
    it.look(expected(it, 20.0, -2.6), WINDOW)
    assert it.hopeful
    it = taught()
    it.look(expected(it, 20.0, -3.7), WINDOW)
    it.look(expected(it, 20.0, -1.8), WINDOW)
    assert not it.hopeful


def test_evidence_reports_better_answers_below_worse_ones_above() -> None:
    """Answers better than expected up to the window count, whatever came above it."""
    it = taught()
    batch = expected(it, 8.0, 4 * -5.0) + expected(it, 20.0, 6.0)
    assert it.look(batch, WINDOW) is True


def other(it: Evidence, n: float, factor: float, count: int = 10) -> list[Sample]:
    """Answers that take `factor` times what `it` expects at `n` in flight."""
    answers = expected(it, n, 0.0, max(count, 1))[:count]
    return [replace(one, latency_s=one.latency_s * factor) for one in answers]


@pytest.mark.parametrize("factor", [11.0, 1 / 11])
def test_evidence_starts_anew_when_latencies_jump_at_a_known_load(factor: float) -> None:
    """Eleven times as long, or as short, at a known load: nothing of before is kept. A factor that
    a loss of capacity may bring is no such jump."""
    it = taught()
    it.look(other(it, 8.0, factor), WINDOW)
    assert mass(it) == pytest.approx(10.0)
    known = taught()
    known.look(other(known, 8.0, factor**0.9), WINDOW)
    assert mass(known) > 12.0


@pytest.mark.parametrize(("known", "anew"), [(10, True), (5, True), (4, False), (0, False)])
def test_evidence_starts_anew_by_what_was_known_alone(known: int, anew: bool) -> None:
    """Latencies beyond the load that was seen say nothing of a jump; half of a batch must not be
    beyond it."""
    it = taught()
    batch = other(it, 8.0, 20.0, known) + other(it, 60.0, 20.0, 10 - known)
    it.look(batch, 100.0)
    assert (mass(it) == pytest.approx(10.0)) is anew
