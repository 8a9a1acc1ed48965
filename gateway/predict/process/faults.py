"""What went wrong and was got over: counted, and said in the log, seldom."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class Faults:
    """Called where an exception is handled; on any thread."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, what: str) -> None:
        """At the first, second, fourth, eighth … with the traceback, which holds no prompt."""
        self.count += 1
        if self.count & (self.count - 1) == 0:
            logger.exception("predictor: %s (%d so far)", what, self.count)
