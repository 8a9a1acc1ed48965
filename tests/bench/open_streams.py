"""Thousands of open streams through one gateway on one core.

    python -m tests.bench.open_streams [--streams 2000] [--window off] [--predict] [--against REV]

The account allows them all; its window is as shipped, or off. All begin within two seconds and
stay open for some ten, an event each half second. Printed are how many came whole (every event
with text, and the end), the gateway's memory for each and its CPU while all are open. Exit code 1
where one did not come whole.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any

from tests.bench import turns
from tests.bench.cores import spent
from tests.bench.gateways import HERE, Revision, measured_gateway, revision
from tests.bench.overhead_figures import Held, held_table
from tests.bench.turns import OFF, ON, Cores, Target

STREAMS = 2000
OPENING_S = 2.0
GAP_S, WORDS = 0.5, 21
AT_EASE_S = 1.0  # from the last one's start until the measured seconds
MEASURED_S = 5.0


def held(
    direct: Target, of: Revision, kind: str, streams: int, on: Cores, window: str = "off"
) -> Held:
    """A gateway of its own, asked for so many streams."""
    how = ["--concurrency", str(streams), "--stream", "--words", str(WORDS), "--once"]
    how += ["--warm-up", "0", "--spread", str(OPENING_S), "--pace", f"50-{1000 * GAP_S:g}-{WORDS}"]
    few = ["--concurrency", "64", "--stream", "--words", str(WORDS)]
    with measured_gateway(direct.port, on[1], predict=kind == ON, of=of, window=window) as gateway:
        one = turns.target(gateway, kind)
        turns.load(one.port, few, 0.5, 1, on[0])  # what is made once is made before
        one.settle()
        before_mb = one.rss_mb()[0]
        reports: list[dict[str, Any]] = []
        asking = threading.Thread(
            target=lambda: reports.append(turns.load(one.port, how, 60.0, 2, on[0]))
        )
        asking.start()
        time.sleep(1.0 + OPENING_S + AT_EASE_S)  # a second for its own start and connections
        then = spent(one.pid)
        time.sleep(MEASURED_S)
        used, sizes = spent(one.pid) - then, one.rss_mb()
        asking.join()
    report = reports[0]
    return Held(
        of=of.name,
        kind=kind,
        streams=streams,
        whole=report["answered"] - report["failed"],
        kb=1024 * (sizes[0] - before_mb) / streams,
        cpu_share=used.total_s / MEASURED_S,
        event_us=1e6 * (used.loop_s + used.threads_s) * GAP_S / MEASURED_S / streams,
        rss_mb=sum(sizes),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="thousands of open streams through one gateway")
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--window", choices=["auto", "off"], default="auto", help="of the account")
    parser.add_argument("--predict", action="store_true", help="with prediction, too")
    parser.add_argument("--against", metavar="REV", help="another revision beside this one")
    options = parser.parse_args()
    with ExitStack() as running:
        revisions = [HERE]
        if options.against:
            revisions.append(running.enter_context(revision(options.against)))
        kinds = (OFF, ON) if options.predict else (OFF,)
        on = turns.pinned()
        direct = running.enter_context(turns.mock(on[0]))
        found = [
            held(direct, of, kind, options.streams, on, options.window)
            for of in revisions
            for kind in kinds
        ]
    print(held_table(found))
    return int(any(one.whole < one.streams for one in found))


if __name__ == "__main__":
    sys.exit(main())
