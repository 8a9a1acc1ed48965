"""Small worlds for the tests of the simulator."""

from __future__ import annotations

from gateway.types import Rung, Workload
from gateway.workbench.simulate.request_rows import RequestRow, generated, noisy, truth
from gateway.workbench.simulate.simulated_provider import ProviderTraits
from gateway.workbench.simulate.virtual_loop import SimulatedRequest
from gateway.workbench.simulate.worlds import Cell, Plan

UNKNOWN = Workload(10, 200.0, 600.0, (20.0,) * 7, 0.1, 0.0, 0.0, 0.2, 0.4, Rung.HEURISTIC)

PLAIN = ProviderTraits(
    shape="knee", knee=4.0, base_s=0.0, prompt_token_s=0.0, output_token_s=0.01, noise=0.0
)
"""An answer of 100 tokens takes a second, up to four at once at full speed."""


def request(
    id: str, arrived_s: float, output_tokens: int, traits: ProviderTraits = PLAIN, z: float = 0.0
) -> SimulatedRequest:
    """Ten prompt tokens, forecast by one who knows."""
    row = truth(RequestRow(10, output_tokens, UNKNOWN))
    return SimulatedRequest(id, arrived_s, row, z, traits.alone_s(10, output_tokens, z))


def plan(**changed: object) -> Plan:
    """Few rows, a short warm-up."""
    given: dict[str, object] = {
        "rows": {"τ 0.60": noisy(generated(300, 3), 0.6, 1)},
        "warm_up": 20,
        **changed,
    }
    return Plan(**given)  # type: ignore[arg-type]


def cell(scenario: str = "burst", seed: int = 0, **changed: object) -> Cell:
    given: dict[str, object] = {
        "scenario": scenario,
        "shape": "knee",
        "rho": 2.0,
        "forecast": "τ 0.60",
        "requests": 60,
        "seed": seed,
        **changed,
    }
    return Cell(**given)  # type: ignore[arg-type]
