"""Processes of the bench: its provider, and the gateway under test."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from gateway.errors import SettingsError
from gateway.settings.schema import Schedule
from gateway.shipped import own_command, own_environ
from gateway.workbench.request_texts import RequestText

START_S = 60.0
END_S = 20.0
LEARN_S = 60.0  # in which a busy predictor must have learned a row
IN_WORK = 8
EVENTS = 100_000  # kept in the journal


class ProviderProcess:
    """The bench's provider as a child process, which ends with this one; a context manager."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url

    @classmethod
    def start(cls) -> ProviderProcess:
        """Start it. Raises SettingsError where it does not start."""
        process = subprocess.Popen(
            own_command("bench-provider"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=own_environ(),
        )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SettingsError("bench: the provider did not start")
        return cls(process, f"http://127.0.0.1:{json.loads(line)['port']}")

    def plan(self, body: bytes) -> dict[str, float]:
        """Begin a run with this ProviderPlan in JSON; the provider's state."""
        response = httpx.put(self.url + "/bench", content=body, trust_env=False)
        response.raise_for_status()
        state: dict[str, float] = response.json()
        return state

    def state(self) -> dict[str, float]:
        """Counts of the present run, and CPU seconds."""
        state: dict[str, float] = httpx.get(self.url + "/bench", trust_env=False).json()
        return state

    def __enter__(self) -> ProviderProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()


class BenchGateway:
    """A fresh gateway on one account, with an empty history; an asynchronous context manager.

    Args:
        models: the clients' names of the provider's one model.
        overrides: SECTION.KEY=VALUE, VALUE as in TOML.
    """

    def __init__(
        self,
        folder: Path,
        provider: str,
        models: Sequence[str],
        time_scale: float,
        overrides: Sequence[str],
    ) -> None:
        self._folder = folder
        self._toml = settings_text(folder, provider, models, time_scale, overrides)
        self.process: Process | None = None
        self.url = ""

    async def __aenter__(self) -> BenchGateway:
        self._folder.mkdir(parents=True)
        (self._folder / "gateway.toml").write_text(self._toml)
        environ = own_environ() | {"SAGESCHED_ADMIN_TOKEN": "bench", "BENCH_KEY": "bench"}
        environ.pop("PORT", None)
        with (self._folder / "log").open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *own_command("serve", "--config", str(self._folder / "gateway.toml")),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environ,
                cwd=self._folder,
            )  # fmt: skip
        try:
            await self._start(self.process)
        except BaseException:
            await _end(self.process)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process is not None
        await _end(self.process)

    async def _start(self, process: Process) -> None:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and process.returncode is None:
            self.url = self.url or self._listening()
            if self.url and await self._ready():
                return
            await asyncio.sleep(0.05)
        tail = (self._folder / "log").read_text(errors="replace")[-600:]
        raise SettingsError(f"bench: the gateway did not become ready: {tail}")

    async def learn(self, seeding: Sequence[RequestText]) -> None:
        """Teach these rows by POST /ingest."""
        room = asyncio.Semaphore(IN_WORK)
        async with httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False) as client:

            async def one(text: RequestText) -> None:
                body: dict[str, Any] = {
                    "messages": text.messages, "model": text.model,
                    "output_tokens": text.output_tokens, "prompt_tokens": text.prompt_tokens,
                }  # fmt: skip
                if text.max_tokens is not None:
                    body["max_tokens"] = text.max_tokens
                async with room:
                    response = await client.post("/ingest", json=body)
                    deadline_s = time.monotonic() + LEARN_S
                    while response.status_code == 503 and time.monotonic() < deadline_s:
                        await asyncio.sleep(float(response.headers.get("retry-after", "1")))
                        response = await client.post("/ingest", json=body)
                if response.status_code != 200:
                    raise SettingsError(f"bench: /ingest answered {response.text[:200]}")

            await asyncio.gather(*(one(text) for text in seeding))

    async def journal_end(self) -> int:
        """Number of the journal's next event."""
        async with self._client() as client:
            last: int = (await client.get("/events", params={"n": "1"})).json()["next"]
            return last

    async def journal(self, since: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Events from that number on, oldest first, and the account's state."""
        async with self._client() as client:
            wanted = {"since": str(since), "n": str(EVENTS)}
            events = (await client.get("/events", params=wanted)).json()["events"]
            accounts = (await client.get("/_stats")).json()["accounts"]
        return events, accounts[0]

    def _client(self) -> httpx.AsyncClient:
        headers = {"authorization": "Bearer bench"}
        return httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False, headers=headers)

    def _listening(self) -> str:
        for line in (self._folder / "log").read_bytes().splitlines():
            if b'"listening"' in line:
                return f"http://127.0.0.1:{json.loads(line)['port']}"
        return ""

    async def _ready(self) -> bool:
        async with self._client() as client:
            health = (await client.get("/health")).json()
        return bool(health["status"] == "ok" and health["predictor"] == "ready")


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), END_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def settings_text(
    folder: Path,
    provider: str,
    models: Sequence[str],
    time_scale: float,
    overrides: Sequence[str],
) -> str:
    """Text of gateway.toml: the defaults, but seconds of work shrink with the provider's.

    Raises:
        SettingsError: an override is not SECTION.KEY=VALUE.
    """
    usual = Schedule()
    tree: dict[str, dict[str, str]] = {
        "server": {"port": "0"},
        "admin": {"token": '"env:SAGESCHED_ADMIN_TOKEN"'},
        "store": {"path": json.dumps(str(folder / "bench.db"))},
        "schedule": {
            "max_overtake_s": repr(usual.max_overtake_s / time_scale),
            "clear_s": repr(usual.clear_s / time_scale),
        },
        "observe": {"events": str(EVENTS)},
        "predict": {"models_path": json.dumps(str(folder / "models")), "refit_every_s": "0"},
    }
    for given in overrides:
        name, _, value = given.partition("=")
        section, _, key = name.partition(".")
        if not key or not value:
            raise SettingsError(f"bench: {given!r}: expected SECTION.KEY=VALUE")
        tree.setdefault(section, {})[key] = value
    lines = []
    for section, keys in tree.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in keys.items()), ""]
    named = ", ".join(f"{json.dumps(name)} = {json.dumps('m')}" for name in models)
    lines += [
        "[[accounts]]", 'name = "a"', f"base_url = {json.dumps(provider + '/v1')}",
        'api_key = "env:BENCH_KEY"', f"models = {{ {named} }}", "",
        "[[tenants]]", 'name = "bench"', "anonymous = true", "",
    ]  # fmt: skip
    return "\n".join(lines)
