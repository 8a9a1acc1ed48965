"""The whole gateway, killed under load and on a full disk.

`kill -9` six times (thirty in the long form), each at a random moment, while rows are taught by
`/ingest` and learned from relayed answers: what was acknowledged is in the store of the next life,
and its index holds exactly the history that can be searched. Then a disk that takes no more
(RLIMIT_FSIZE set on the running process): what must be stored is refused with a reason, the rest
goes on.
"""

from __future__ import annotations

import os
import queue
import random
import resource
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.gateway import GatewayProcess, account
from tests.kit.length import short_or_long
from tests.kit.predictor import child_of
from tests.kit.provider import ScriptedProvider

Start = Callable[..., GatewayProcess]
LANES, KILLS = 2, short_or_long(3, 15)  # gateways side by side, lives of each
# Lives of a gateway, kills of its child in each. More kills in a row would meet the pauses before
# a new child, which double up to a minute.
LIVES, CHILD_KILLS = short_or_long((1, 1), (3, 4))
CLIENTS = 3
FIRST_ID = 1_000_000  # ids stand in prompt_tokens, above what the provider counts
PREDICT = {"enabled": True, "predict_wait_s": 5.0}  # as long as its start may take
SEARCHABLE = "vector <> x'' AND output_tokens > 0 AND (success OR censored)"


class Load:
    """Clients that teach and ask until the gateway is gone. `acknowledged` has one id for each
    row that was said to be stored."""

    def __init__(self, gateway: GatewayProcess, first: int) -> None:
        self.acknowledged: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._gateway = gateway
        self._threads = [
            threading.Thread(target=self._until_gone, args=(first + at,)) for at in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> set[int]:
        """After the kill: everything that was acknowledged."""
        for thread in self._threads:
            thread.join(20)
        confirmed = set()
        while not self.acknowledged.empty():
            confirmed.add(self.acknowledged.get())
        return confirmed

    def _until_gone(self, id: int) -> None:
        with httpx.Client(headers=self._gateway.headers, timeout=20) as client:
            try:
                while True:
                    self._ask(client, id)
                    self._ingest(client, id)
                    id += CLIENTS
            except httpx.TransportError:
                pass

    def _ingest(self, client: httpx.Client, id: int) -> None:
        row = {
            "prompt": f"Lesson {id} on {chr(97 + id % 26) * 5}",
            "output_tokens": 1 + id % 700,
            "prompt_tokens": id,
            "success": id % 7 != 0,  # a failed one is history, too
        }
        if client.post(self._gateway.url("/ingest"), json=row).status_code == 200:
            self.acknowledged.put(id)

    def _ask(self, client: httpx.Client, id: int) -> None:
        body = {"model": "kit-model", "messages": [{"role": "user", "content": f"hi {id}"}]}
        client.post(self._gateway.url("/v1/chat/completions"), json=body)


def stored(path: Path, what: str = "1") -> set[tuple[int, int]]:
    """(rowid, id) of the history rows for which `what` holds, as another process sees them."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return set(connection.execute(f"SELECT rowid, prompt_tokens FROM history WHERE {what}"))
    finally:
        connection.close()


def ready(gateway: GatewayProcess) -> dict[str, Any]:
    """The figures of a gateway that has filled its index, and was taught nothing yet: a forecast
    waits until the predictor is there."""
    body = {"prompt": "Are you there?"}
    httpx.post(gateway.url("/predict"), json=body, headers=gateway.headers, timeout=20)
    shown: dict[str, Any] = httpx.get(
        gateway.url("/stats"), headers=gateway.admin_headers, timeout=20
    ).json()
    assert shown["predictor"]["ready"]
    return shown


def faults(gateway: GatewayProcess, confirmed: set[int]) -> list[str]:
    """Faults of a gateway that has just started: acknowledged rows that are lost, and counts of
    index or store that differ from the file."""
    path, shown = gateway.directory / "sagesched.db", ready(gateway)
    every, searchable = stored(path), stored(path, SEARCHABLE)
    found = []
    if lost := confirmed - {id for _, id in every}:
        found.append(f"acknowledged and lost: {sorted(lost)[:5]}")
    if shown["predictor"]["index_rows"] != len(searchable):
        found.append(f"index {shown['predictor']['index_rows']}, history {len(searchable)}")
    if shown["store"]["rows"] != len(every):
        found.append(f"rows said {shown['store']['rows']}, there are {len(every)}")
    if list(gateway.directory.glob("*.corrupt-*")):
        found.append("the store was set aside as corrupt")
    return found


def live_and_die(gateway: GatewayProcess, confirmed: set[int], rows: int) -> None:
    """One life: start, look back, work, and be killed when so many rows are acknowledged."""
    gateway.start()
    try:
        assert faults(gateway, confirmed) == []
        load = Load(gateway, max(confirmed, default=FIRST_ID) + 1000)
        try:
            first = [load.acknowledged.get(timeout=20) for _ in range(rows)]
        finally:
            gateway.kill()
            confirmed |= load.join()
        confirmed |= set(first)
    finally:
        gateway.kill()


def made(directory: Path, provider: ScriptedProvider) -> GatewayProcess:
    directory.mkdir()
    return GatewayProcess(directory, accounts=[account(provider)], predict=PREDICT, forked=True)


@pytest.mark.timeout(300)  # thirty starts, with whatever else the machine does
def test_gateway_killed_under_load_keeps_what_it_acknowledged(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    """After each of the kills every acknowledged row is stored, and the next index equals the
    usable history."""

    def lane(number: int) -> int:
        gateway, confirmed = made(tmp_path / str(number), provider), set[int]()
        for _ in range(KILLS):
            live_and_die(gateway, confirmed, random.randint(1, 12))
        with gateway:
            assert faults(gateway, confirmed) == []
        return len(confirmed)

    with ThreadPoolExecutor(LANES) as pool:
        assert min(pool.map(lane, range(LANES))) >= KILLS


def test_predictor_killed_under_load_loses_no_acknowledged_row(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    """`kill -9` of the process that writes history, amid commits: /ingest goes on with the next
    one, and every acknowledged row is there, in the running gateway's count and after a restart."""
    gateway, confirmed = made(tmp_path / "child", provider), set[int]()
    for _ in range(LIVES):
        with gateway:
            assert faults(gateway, confirmed) == []
            load = Load(gateway, max(confirmed, default=FIRST_ID) + 1000)
            try:
                for _ in range(CHILD_KILLS):
                    confirmed |= {load.acknowledged.get(timeout=30) for _ in range(8)}
                    child = child_of(gateway)
                    assert child is not None
                    os.kill(child, signal.SIGKILL)
                    while not load.acknowledged.empty():
                        confirmed.add(load.acknowledged.get())
                # Those of the last child.
                confirmed |= {load.acknowledged.get(timeout=30) for _ in range(8)}
            finally:
                gateway.kill()
                confirmed |= load.join()
    with gateway:
        assert faults(gateway, confirmed) == []


def test_lost_acknowledged_row_is_found(tmp_path: Path, provider: ScriptedProvider) -> None:
    """The twin: a row removed on purpose is found missing, by its id and in the index."""
    gateway, confirmed = made(tmp_path / "twin", provider), set[int]()
    live_and_die(gateway, confirmed, 12)  # among them some that succeeded
    path = gateway.directory / "sagesched.db"
    with gateway:
        assert faults(gateway, confirmed) == []
        some = next(id for id in confirmed if id % 7)
        with sqlite3.connect(path) as connection:
            connection.execute("DELETE FROM history WHERE prompt_tokens = ?", (some,))
        connection.close()
        lost, index, rows = faults(gateway, confirmed)
        assert str(some) in lost
        assert index.startswith("index ")
        assert rows.startswith("rows said ")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a running process are Linux's")
def test_full_disk_refuses_what_must_be_stored_and_relays_on(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """On a full disk /ingest and /submit answer 503 with the reason, requests are relayed, and
    /health shows the fault; with room again everything works as before."""
    gateway = start_gateway(provider, predict=PREDICT)
    ready(gateway)
    lesson = {"prompt": "hi", "output_tokens": 3, "prompt_tokens": 1}

    def post(path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(gateway.url(path), json=body, headers=gateway.headers, timeout=20)

    def store() -> str:
        health = httpx.get(gateway.url("/health"))
        assert health.status_code == 200  # it serves
        said: str = health.json()["store"]
        return said

    def index_rows() -> int:
        stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers)
        rows: int = stats.json()["predictor"]["index_rows"]
        return rows

    def room(bytes_: int) -> None:
        assert gateway.process is not None
        for pid in (gateway.process.pid, child_of(gateway)):  # jobs, and history
            assert pid is not None
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_, hard))

    assert gateway.process is not None
    soft, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
    assert post("/ingest", lesson).status_code == 200
    assert store() == "ok"
    room(1)
    for path, body in (("/ingest", lesson), ("/submit", {"prompt": "hi"})):
        refused = post(path, body)
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "store_failing"
        assert "store cannot write" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0
    assert store() == "failing"
    assert index_rows() == 1  # what was refused was not learned
    assert "sagesched_store_ok 0.0" in httpx.get(gateway.url("/metrics")).text
    chat = {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}]}
    assert post("/v1/chat/completions", chat).status_code == 200
    room(soft)
    for path, body in (("/ingest", lesson), ("/submit", {"prompt": "hi"})):
        assert post(path, body).is_success  # each by its own writer
    assert store() == "ok"
