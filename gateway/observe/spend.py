"""Cost of requests, for `/stats`: counted as they end, until an operator resets it.

The forecast cost of the same requests stands beside it, for comparison. A median of such lengths
is below their mean, so the sum of p50 is expected to be the smaller of the two. The metrics
(metrics.py) count the same and are never reset.

Models and tenants are the settings' own names, or "other" (JobRecord); names that have left the
settings stay until the next `clear`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from gateway.types import JobRecord

MOST_NAMES = 1000  # of models, and of tenants; later ones count as "other"
OTHER = "other"


class Spend:
    """US dollars by model and by tenant. Belongs to the loop."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Count from zero."""
        self._total = self._predicted = 0.0
        self._unpriced = 0
        self._models: defaultdict[str, float] = defaultdict(float)
        self._tenants: defaultdict[str, float] = defaultdict(float)

    def ended(self, record: JobRecord) -> None:
        """Count one ended request."""
        usd, forecast = record.cost_usd, record.workload
        if usd is None:
            self._unpriced += record.usage is not None
            return
        self._total += usd
        if forecast is not None and forecast.cost_usd_p50 is not None:
            self._predicted += forecast.cost_usd_p50
        self._models[_bounded(self._models, record.model)] += usd
        self._tenants[_bounded(self._tenants, record.tenant)] += usd

    def report(self) -> dict[str, Any]:
        """Sums for display; `unpriced` counts requests that used tokens without a price."""
        return {
            "total": _rounded(self._total),
            "predicted": _rounded(self._predicted),
            "by_model": {name: _rounded(usd) for name, usd in self._models.items()},
            "by_tenant": {name: _rounded(usd) for name, usd in self._tenants.items()},
            "unpriced": self._unpriced,
        }


def _bounded(sums: dict[str, float], name: str) -> str:
    return name if name in sums or len(sums) < MOST_NAMES else OTHER


def _rounded(usd: float) -> float:
    return round(usd, 9)
