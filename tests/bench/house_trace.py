"""One streamed chat request after the other through a traced gateway, for `tests.bench.house`.

    python tests/bench/house_trace.py REQUESTS EVENTS SETTLE_S

Uses the test kit and the gateway of the folder it is run in. Prints a JSON list with the files,
functions, calls and hops of each request.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import httpx

from tests.kit import steps
from tests.kit.gateway import ROOT, GatewayProcess, account
from tests.kit.provider import ScriptedProvider

TRACED = Path(__file__).with_name("house_traced.py")
WARM_UP = 3  # requests before those that are counted


def script(events: int) -> list[object]:
    """A streamed answer whose content events come one by one."""
    word = steps.event(steps.chunk({"content": "word "}))
    usage = {**steps.chunk({}), "choices": [], "usage": steps.usage_of((9, events))}
    return [
        steps.Head(headers=steps.EVENTS),
        steps.Send(steps.event(steps.chunk({"role": "assistant"}))),
        steps.Drip(word * events, size=len(word), every_s=0.01),
        steps.Send(steps.event(steps.chunk({}, "stop"))),
        steps.Send(steps.event(usage) + b"data: [DONE]\n\n"),
    ]


def counts(calls: list[list[str]]) -> dict[str, int]:
    """Figures of one trace: lists of file and function, in order."""
    files = [file for file, _ in calls]
    return {
        "files": len(set(files)),
        "functions": len({(file, name) for file, name in calls}),
        "calls": len(calls),
        "hops": sum(one != other for one, other in pairwise(files)),
    }


def main() -> None:
    """Run the requests and print their figures."""
    requests, events, settle_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    found = []
    with tempfile.TemporaryDirectory() as folder, ScriptedProvider() as provider:
        written = Path(folder) / "calls.json"
        gateway = GatewayProcess(
            Path(folder),
            accounts=[account(provider)],
            module=TRACED.stem,
            env={"TRACE_FILE": str(written), "PYTHONPATH": f"{ROOT}{os.pathsep}{TRACED.parent}"},
            predict={"enabled": True},
        )
        with gateway, httpx.Client() as client:
            for number in range(WARM_UP + requests):
                provider.enqueue(script(events))  # type: ignore[arg-type]
                prompt = f"Write {number + 1} stories about lighthouse number {7 * number}"
                body = {
                    "model": "kit-model",
                    "messages": [{"role": "user", "content": prompt}],
                    "stream": True,
                }
                time.sleep(settle_s)
                written.unlink(missing_ok=True)
                gateway.signal(signal.SIGUSR1)
                url = gateway.url("/v1/chat/completions")
                with client.stream("POST", url, json=body, headers=gateway.headers) as answer:
                    answer.read()
                gateway.signal(signal.SIGUSR2)
                while not written.exists():
                    time.sleep(0.01)
                found.append(counts(json.loads(written.read_text())))
    print(json.dumps(found[WARM_UP:]))


if __name__ == "__main__":
    main()
