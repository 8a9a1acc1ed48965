"""The real gateway as a process: its own gateway.toml, its own port, its log heard live.

    gateway = GatewayProcess(tmp_path, accounts=[account(provider)])
    with gateway:                       # starts, waits for the "listening" line
        httpx.get(gateway.url("/health"))
        gateway.edit(schedule={"borrow": False}); gateway.signal(signal.SIGHUP)
        gateway.wait_log(lambda line: line.get("msg") == "settings applied")
    # left: SIGTERM, and exit code 0 is asserted

Nothing here polls: one thread reads the process's output and wakes whoever waits for a line.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.settings.load import ENVIRONMENT, IGNORED_ENVIRONMENT
from tests.kit.forked import FORKS, ForkedProcess

Tree = dict[str, Any]
Line = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
PROVIDER_KEY = "kit-provider-key"
TENANT_KEY = "kit-tenant-key"


def account(provider: Any, name: str = "a", **more: Any) -> Tree:
    """An account on a provider: anything with `base_url`, or the URL itself."""
    base_url = provider if isinstance(provider, str) else provider.base_url
    models = ["kit-model"]
    key = "env:KIT_PROVIDER_KEY"
    return {"name": name, "base_url": base_url, "api_key": key, "models": models, **more}


def tenant(name: str = "kit", key: str = TENANT_KEY, **more: Any) -> Tree:
    """A tenant with one key; send it as `Authorization: Bearer <key>`."""
    return {"name": name, "keys": [f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"], **more}


class GatewayProcess:
    """One gateway. Sections of gateway.toml are keyword arguments, merged over the kit's own."""

    def __init__(
        self,
        directory: Path,
        *,
        accounts: list[Tree],
        tenants: list[Tree] | None = None,
        env: dict[str, str] | None = None,
        start_timeout_s: float = 30.0,
        stop_timeout_s: float = 20.0,
        module: str = "gateway",
        forked: bool = False,
        **sections: Tree,
    ) -> None:
        self.directory = directory
        self.config = directory / "gateway.toml"
        self.admin_token = secrets.token_urlsafe(24)
        self.start_timeout_s, self.stop_timeout_s = start_timeout_s, stop_timeout_s
        self.host, self.port = "", 0
        self.output: list[str] = []  # every line, stdout and stderr together
        self.process: subprocess.Popen[str] | ForkedProcess | None = None
        self._env = env or {}
        self._module = module  # what is run: the gateway, or one with a fault built in
        self._forked = forked and FORKS  # without the imports of a start (tests/kit/forked.py)
        self._heard = threading.Condition()
        self._deaf = False  # the output has ended
        self._tree: Tree = {
            "server": {"host": "127.0.0.1", "port": 0},
            "store": {"path": str(directory / "sagesched.db")},
            "predict": {"enabled": False},  # a third of the start; who needs it says so
            "accounts": accounts,
            "tenants": tenants if tenants is not None else [tenant()],
        }
        self.edit(**sections)

    # ── settings ─────────────────────────────────────────────────────────────

    def edit(self, **sections: Any) -> None:
        """Merge sections into gateway.toml (lists are replaced) and write it."""
        for name, section in sections.items():
            old = self._tree.get(name)
            merged = isinstance(section, dict) and isinstance(old, dict)
            self._tree[name] = {**old, **section} if merged and old is not None else section
        self.write(toml(self._tree))

    def write(self, text: str) -> None:
        """Replace gateway.toml by this text, valid or not."""
        self.config.write_text(text, encoding="utf-8")

    # ── life ─────────────────────────────────────────────────────────────────

    def __enter__(self) -> GatewayProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.kill()
        else:
            self.stop()

    def start(self) -> None:
        """Start it and wait until it listens. Raises AssertionError with its output."""
        known = {*ENVIRONMENT, *IGNORED_ENVIRONMENT}
        env = {k: v for k, v in os.environ.items() if k not in known}
        env |= {"SAGESCHED_ADMIN_TOKEN": self.admin_token, "KIT_PROVIDER_KEY": PROVIDER_KEY}
        env |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **self._env}
        with self._heard:
            self.output, self._deaf = [], False
        self.process = self._started(["serve", "--config", str(self.config)], env)
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        try:
            line = self.wait_log(lambda x: x.get("msg") == "listening", self.start_timeout_s)
        except BaseException:
            self.kill()
            raise
        self.host, self.port = str(line["host"]), int(line["port"])

    def _started(
        self, arguments: list[str], env: dict[str, str]
    ) -> subprocess.Popen[str] | ForkedProcess:
        if self._forked:
            return ForkedProcess(self._module, arguments, self.directory, env)
        return subprocess.Popen(
            [sys.executable, "-m", self._module, *arguments],
            cwd=self.directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that `kill` reaches what it started, too
        )

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait_exit(self, timeout_s: float | None = None) -> int:
        """Wait for its end by itself; the exit code. Raises AssertionError."""
        assert self.process is not None
        try:
            code = self.process.wait(self.stop_timeout_s if timeout_s is None else timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the gateway did not end; {self._tail()}") from None
        self._reader.join(5)
        return code

    def stop(self, *, expect: int = 0) -> None:
        """SIGTERM, and assert the exit code. Nothing to do when it has ended and was checked."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        code = self.wait_exit()
        self.process = None
        assert code == expect, f"exit code {code}, expected {expect}; {self._tail()}"

    def kill(self) -> None:
        """End it and whatever it started, at once, asserting nothing."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended, or has no group yet
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(5)
        self._reader.join(5)  # or its last words would be taken for the next one's
        self.process = None

    # ── what it says ─────────────────────────────────────────────────────────

    @property
    def log(self) -> list[Line]:
        """The JSON lines of its output so far."""
        with self._heard:
            return [line for line in map(parse_line, self.output) if line is not None]

    def wait_log(self, wanted: Callable[[Line], bool], timeout_s: float = 5.0) -> Line:
        """The first JSON line, old or new, for which `wanted` is true.

        Raises AssertionError with the output's end when it does not come, or when the
        process ended without saying it.
        """
        deadline, seen = time.monotonic() + timeout_s, 0
        with self._heard:
            while True:
                while seen < len(self.output):
                    line = parse_line(self.output[seen])
                    seen += 1
                    if line is not None and wanted(line):
                        return line
                left = deadline - time.monotonic()
                if self._deaf or left <= 0:
                    why = "it ended" if self._deaf else f"not within {timeout_s} s"
                    raise AssertionError(f"the wanted line did not come: {why}; {self._tail()}")
                self._heard.wait(left)

    def _listen(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._heard:
                self.output.append(line.rstrip("\n"))
                self._heard.notify_all()
        with self._heard:
            self._deaf = True
            self._heard.notify_all()

    def _tail(self) -> str:
        return "its output ends:\n" + "\n".join(self.output[-30:])

    # ── how to reach it ──────────────────────────────────────────────────────

    @property
    def base_url(self) -> str:
        """For OpenAI clients: with /v1."""
        return self.url("/v1")

    def url(self, path: str = "") -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{path}"

    @property
    def admin_headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.admin_token}"}

    @property
    def headers(self) -> dict[str, str]:
        """Headers with the key of the kit's own tenant."""
        return {"authorization": f"Bearer {TENANT_KEY}"}


def parse_line(text: str) -> Line | None:
    """A JSON object, or None: tracebacks and warnings are lines, too."""
    if not text.startswith("{"):
        return None
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def toml(tree: Tree) -> str:
    """TOML of plain values: tables first level, everything below inline."""
    out: list[str] = []
    for name, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(x, dict) for x in value):
            for item in value:
                out += [f"[[{name}]]", *_pairs(item), ""]
        elif isinstance(value, dict):
            out += [f"[{name}]", *_pairs(value), ""]
        else:
            out.insert(0, f"{name} = {_inline(value)}")
    return "\n".join(out) + "\n"


def _pairs(table: Tree) -> list[str]:
    return [f"{_inline(str(key))} = {_inline(value)}" for key, value in table.items()]


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(_pairs(value)) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
