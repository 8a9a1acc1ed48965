"""The gateway on a machine too slow for it: `python -m tests.kit.busy serve --config …`.

Its scheduler holds the event loop for `WORK_S` with every request. The seam is the core that
`serve` is given.
"""

from __future__ import annotations

import argparse
import sys
from time import perf_counter

from gateway.balance.accounts import Accounts
from gateway.schedule.events import Action, Event, Submitted
from gateway.schedule.scheduler import Scheduler
from gateway.serve import serve
from gateway.settings.schema import Settings

WORK_S = 0.02


class Busy(Scheduler):
    def handle(self, event: Event, now: float) -> list[Action]:
        until_s = perf_counter() + WORK_S
        while isinstance(event, Submitted) and perf_counter() < until_s:
            pass
        return super().handle(event, now)


def core(settings: Settings, old: Scheduler | None) -> Scheduler:
    return Busy(settings, Accounts(settings.accounts, settings.balance))


if __name__ == "__main__":
    sys.exit(serve(argparse.Namespace(config=sys.argv[sys.argv.index("--config") + 1]), core))
