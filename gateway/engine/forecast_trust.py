"""The trust in forecasts, which scales how far the scheduler orders by them.

A forecast's p90 should hold for nine answers of ten. Where it holds for far fewer, or for all
(then it is too wide to be of use), the forecasts have lost touch with the traffic (a new source,
a changed model), and ordering by them does harm. The less trust, the more the scheduler shrinks
all sizes towards the typical one, and its order towards first come, first served.

Coverage is counted over the last answers, faded by number and not by time. Cut, cancelled and
uncounted answers are left out. Below `SURE` answers the trust is full, so a cold start costs none.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.types import CUT_FINISH_REASONS, JobRecord, Listener, Outcome

MEMORY = 200.0  # answers
SURE = 50.0
WANTED = 0.9
TOLERATED = 0.07  # off the wanted share, without any loss of trust
LOST = 0.35  # off it: no trust at all
STEP = 0.1  # a smaller change is not reported


class ForecastTrust(Listener):
    """An engine listener that calls `changed` with the trust, 0 to 1, at each change by `STEP`.

    `value` is the trust last reported.
    """

    def __init__(self, changed: Callable[[float], object]) -> None:
        self._changed = changed
        self._answers = 0.0
        self._covered = 0.0
        self.value = 1.0

    def ended(self, record: JobRecord) -> None:
        forecast, usage = record.workload, record.usage
        if forecast is None or usage is None or usage.estimated or not record.generates:
            return
        if record.outcome is not Outcome.OK or record.n < 1:
            return
        if record.finish_reason in CUT_FINISH_REASONS:
            return
        keep = 1.0 - 1.0 / MEMORY
        self._answers = self._answers * keep + 1.0
        self._covered = self._covered * keep + (usage.output_tokens / record.n <= forecast.p90)
        trust = self._trust()
        reached_an_end = trust in (0.0, 1.0) and trust != self.value
        if reached_an_end or abs(trust - self.value) >= STEP:
            self.value = trust
            self._changed(trust)

    def _trust(self) -> float:
        if self._answers < SURE:
            return 1.0
        off = abs(self._covered / self._answers - WANTED)
        return min(1.0, max(0.0, 1.0 - (off - TOLERATED) / (LOST - TOLERATED)))
