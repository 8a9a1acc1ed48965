"""The calibration as it outlives whoever learned it."""

from __future__ import annotations

from collections.abc import Callable

from gateway.predict.calibrate import Calibration
from gateway.predict.process.faults import Faults


class Kept:
    """Its bytes: what the next backend begins with, and the next process. One thread at a time.

    Args:
        state: as `store` was last given it.
        store: must not block.
    """

    def __init__(
        self, state: bytes | None, store: Callable[[bytes], object] | None, faults: Faults
    ) -> None:
        self.state = state
        self._store = store
        self._faults = faults

    def put(self, calibration: Calibration) -> None:
        self.state = calibration.dump()
        try:
            if self._store is not None:
                self._store(self.state)
        except Exception:
            self._faults("the calibration was not stored")
