"""The gateway with a scheduler that raises: `python -m tests.kit.raising serve --config …`.

The seam is the core that `serve` is given. What it raises on is told by the model's name:

    once-…      the first event about such a job, once in the process's life
    poison-…    every event about such a job, in every core
    always-…    from the first such job on, every event whatsoever
"""

from __future__ import annotations

import argparse
import sys

from gateway.balance.accounts import Accounts
from gateway.schedule.events import Action, Adopted, Event, Submitted
from gateway.schedule.scheduler import Scheduler
from gateway.serve import serve
from gateway.settings.schema import Settings

raised: set[str] = set()


class Raising(Scheduler):
    def handle(self, event: Event, now: float) -> list[Action]:
        actions = super().handle(event, now)  # half done is worse than not begun
        if "always" in raised:
            raise RuntimeError("always")
        if isinstance(event, Submitted | Adopted):
            kind = event.job.model.partition("-")[0]
            if kind == "poison" or (kind in ("once", "always") and kind not in raised):
                raised.add(kind)
                raise RuntimeError(kind)
        return actions


def core(settings: Settings, old: Scheduler | None) -> Scheduler:
    return Raising(settings, Accounts(settings.accounts, settings.balance))


if __name__ == "__main__":
    sys.exit(serve(argparse.Namespace(config=sys.argv[sys.argv.index("--config") + 1]), core))
