"""Per-tenant online correction of what the shipped models leave over.

The shipped models order requests well inside sources like those they were fitted on, and
poorly inside others: there the running mean of the residual (calibrate.py) puts the middle
right and leaves the order as it was. A refit learns that order, hours and hundreds of rows
later. This linear model on some hundred features learns part of it from about fifty answers.

Method: recursive least squares, one per tenant, from a prior at zero, as if every coefficient
were 0 with variance 1 / `RIDGE` of the noise's. Two outputs share one gain: the residual of log
length, and of "is it short" (output ≤ 64 tokens). Old answers fade: the covariance is drawn back
to the prior's by 1 / `MEMORY` an answer, so features never seen do not grow uncertain without
bound. Each source (a model as the tenant uses it) has a gate between 0 and 1: the regression
slope of the true residual on the one predicted before it, drawn to 0. Where the corrections of
late were noise, the slope is about 0 and the shipped forecast stands.

A tenant's model is its own and is not stored: a start learns it again from history. A refit of
the full model takes over most of it, so it begins anew then; the refit is judged without it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gateway.predict.calibrate import GroupKeys
from gateway.predict.features import NAMES
from gateway.predict.lengths import MEDIAN
from gateway.predict.quantiles import NEIGHBOUR_NAMES, Grid

Inputs = npt.NDArray[np.float64]

RIDGE = 100.0  # answers' worth of "no": chosen, with the rest, as MODELCARD.md tells
MEMORY = 3000.0  # answers
GATE_MEMORY = 300.0  # answers
GATE_PRIORS = np.array([0.3, 0.05])  # sums of squares that speak for a slope of 0
FAR = 3.0  # deviations at which a feature is held
RESIDUAL = 2.0  # of one answer, at most
SURPRISE = np.array([1.5, 1.0])  # a difference from the prediction counts for at most this
LARGEST = 1.5  # correction of log length: a factor of 4.5
TENANTS = 128  # some 90 kB each; the longest without an answer gives way
GATES = 256  # sources of one tenant
LENGTHS = ("nn_mean", "nn_p10", "nn_p50", "nn_p90", "nn_first", "nn_same_model")
"""Neighbours' lengths whose distance from the forecast is a feature, the nearer they are."""

_LENGTHS = [NEIGHBOUR_NAMES.index(name) for name in LENGTHS]
_NEAREST = NEIGHBOUR_NAMES.index("nn_max")


class CorrectionColumns(Struct, frozen=True):
    """The cheap features read, and means and deviations of all inputs over the fitted rows."""

    names: list[str]
    mean: list[float]
    deviation: list[float]
    projected: list[float]  # deviations of the projected vector


class Correction(Struct, frozen=True):
    """A correction of one forecast, already weighed by its source's gate."""

    length: float = 0.0  # of log length
    short: float = 0.0  # of P(output ≤ 64 tokens)


NO_CORRECTION = Correction()


class _TenantModel:
    """Coefficients, their covariance in units of the noise's, and the sources' gates."""

    __slots__ = ("covariance", "gates", "weights")

    def __init__(self, width: int) -> None:
        self.weights = np.zeros((2, width))
        self.covariance = np.eye(width) / RIDGE
        self.gates: OrderedDict[str, Inputs] = OrderedDict()

    def gate(self, source: str) -> Inputs:
        sums = self.gates.get(source)
        if sums is None:
            return np.zeros(2)
        slopes: Inputs = np.clip(sums[0] / (sums[1] + GATE_PRIORS), 0.0, 1.0)
        return slopes


class TenantCorrections:
    """The models of all tenants. Belongs to one thread.

    Args:
        columns: of the shipped models.

    Raises:
        ValueError: they do not fit each other or this code's features.
    """

    def __init__(self, columns: CorrectionColumns) -> None:
        self._columns = [NAMES.index(name) for name in columns.names]
        self._mean = np.array(columns.mean)
        self._scale = 1.0 / np.array([*columns.deviation, *columns.projected])
        if len(self._mean) != len(self._columns) or len(columns.deviation) != len(self._mean):
            raise ValueError("the columns' means and deviations do not fit each other")
        self.width = len(self._scale) + len(LENGTHS) + 1
        self._tenants: OrderedDict[str, _TenantModel] = OrderedDict()

    def inputs(
        self,
        cheap: Sequence[float],
        projected: Sequence[float],
        near: Sequence[float],
        middle: float,
        head: Grid | None,
    ) -> Inputs:
        """The inputs of one request, scaled; some 20 µs.

        Args:
            cheap, projected, near: as the full model reads them.
            middle: the full model's median, uncorrected.
            head: the head's grid, where there is one.
        """
        own = np.array([cheap[i] for i in self._columns]) - self._mean
        both = np.concatenate([own, projected]) * self._scale
        nearest = min(max(near[_NEAREST], 0.0), 1.0)
        apart = [(near[i] - middle) * nearest for i in _LENGTHS]
        apart.append(0.0 if head is None else head[MEDIAN] - middle)
        inputs = np.concatenate([both, apart])
        inputs[np.isnan(inputs)] = 0.0
        return np.clip(inputs, -FAR, FAR, out=inputs)

    def of(self, keys: GroupKeys, inputs: Inputs) -> Correction:
        """The correction of one request."""
        tenant = self._tenants.get(keys.tenant)
        if tenant is None:
            return NO_CORRECTION
        length, short = (tenant.gate(keys.source) * (tenant.weights @ inputs)).tolist()
        return Correction(min(max(length, -LARGEST), LARGEST), min(max(short, -1.0), 1.0))

    def learn(
        self, keys: GroupKeys, inputs: Inputs, residual: float | None, short: float | None
    ) -> None:
        """Learn one answer; some 50 µs.

        Args:
            residual: log length minus the forecast without this correction; None: not known.
            short: 1 or 0, minus the probability without this correction; None: not known.
        """
        tenant = self._tenant(keys.tenant)
        predicted = tenant.weights @ inputs
        if residual is not None:
            residual = min(max(residual, -RESIDUAL), RESIDUAL)
        true = np.array([np.nan if value is None else value for value in (residual, short)])
        unknown = np.isnan(true)
        true[unknown] = predicted[unknown]  # as if it had been right: nothing to learn
        self._update_gate(tenant, keys.source, np.where(unknown, 0.0, predicted), true)
        weights, covariance = tenant.weights, tenant.covariance
        covariance *= 1.0 - 1.0 / MEMORY
        covariance.flat[:: self.width + 1] += 1.0 / (RIDGE * MEMORY)
        spread = covariance @ inputs
        gain = spread / (1.0 + inputs @ spread)
        weights += np.outer(np.clip(true - predicted, -SURPRISE, SURPRISE), gain)
        covariance -= np.outer(gain, spread)

    def _update_gate(
        self, tenant: _TenantModel, source: str, predicted: Inputs, true: Inputs
    ) -> None:
        sums = tenant.gates.pop(source, None)
        if sums is None:
            sums = np.zeros((2, 2))
        sums *= 1.0 - 1.0 / GATE_MEMORY
        sums += (predicted * true, predicted * predicted)
        tenant.gates[source] = sums
        if len(tenant.gates) > GATES:
            tenant.gates.popitem(last=False)

    def _tenant(self, name: str) -> _TenantModel:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = _TenantModel(self.width)
            if len(self._tenants) > TENANTS:
                self._tenants.popitem(last=False)
        self._tenants.move_to_end(name)
        return tenant
