"""CPU time that learning may take: a share of one core, saved up for a tenth of a second."""

from __future__ import annotations

from collections.abc import Callable

IDLE_SHARE = 0.05  # of a core that the event loop uses; below it the core is hardly wanted
SAVED_S = 0.1
LEAST_S = 1e-4  # that a piece of work is begun with


def learning_share(setting: float, loop_share: float) -> float:
    """Share of a core for learning.

    Args:
        setting: `predict.cpu_share`, all of it where the event loop uses `IDLE_SHARE` or more of a
            core; a loop that uses none leaves the whole core.
        loop_share: share of a core that the event loop used lately.
    """
    idle = max(0.0, 1.0 - loop_share / IDLE_SHARE)
    return setting + (1.0 - setting) * idle


class CpuAllowance:
    """A token bucket of CPU time. `clock` gives seconds; the share is 1 at first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at_s = clock()
        self._share = 1.0
        self._left_s = SAVED_S

    def __repr__(self) -> str:
        return f"<CpuAllowance {self._share:.2f} of a core, {self._left_s * 1e3:.1f} ms left>"

    def change(self, share: float) -> None:
        """Take another share of a core from now on."""
        self._refill()
        self._share = share

    def spend(self, cpu_s: float) -> None:
        """Take off what was used. A piece of work that was begun may overdraw; of what is owed
        more than `SAVED_S` is forgiven."""
        self._left_s = max(self._left_s - cpu_s, -SAVED_S)

    def wait_s(self) -> float:
        """Seconds until there is some; 0 where there is."""
        self._refill()
        return 0.0 if self._left_s > 0.0 else (LEAST_S - self._left_s) / self._share

    def _refill(self) -> None:
        now_s = self._clock()
        gained_s = (now_s - self._at_s) * self._share
        self._left_s = min(self._left_s + gained_s, SAVED_S * self._share)
        self._at_s = now_s
