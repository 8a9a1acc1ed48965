"""The process kit: it writes valid TOML and reads the process's output in order."""

from __future__ import annotations

import os
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.gateway import PROVIDER_KEY, GatewayProcess, account, parse_line, toml
from tests.kit.provider import ScriptedProvider

TREES: list[dict[str, Any]] = [
    {"demo": {"enabled": True, "seed": 3, "noise": 0.5}},
    {"accounts": [{"models": {"a b": 'x"y'}, "n": 1}, {"models": ["ü", "\\"]}]},
    {"top": "level", "schedule": {"tier_caps": {"short": 4}}, "empty": {}, "none": []},
]


@pytest.mark.parametrize("tree", TREES)
def test_toml_reads_back_as_it_was(tree: dict[str, Any]) -> None:
    """Every tree survives the way through TOML."""
    assert tomllib.loads(toml(tree)) == tree


def test_gateway_process_edits_sections_and_keeps_the_rest(tmp_path: Path) -> None:
    """`edit` merges tables, replaces lists, and writes the file."""
    gateway = GatewayProcess(tmp_path, accounts=[account("http://127.0.0.1:1/v1")])
    gateway.edit(server={"drain_timeout_s": 2.0}, schedule={"borrow": False})
    tree = tomllib.loads(gateway.config.read_text())
    assert tree["server"] == {"host": "127.0.0.1", "port": 0, "drain_timeout_s": 2.0}
    assert tree["schedule"] == {"borrow": False}
    assert tree["accounts"][0]["base_url"] == "http://127.0.0.1:1/v1"


@pytest.mark.parametrize("forked", [True, False])
def test_gateway_process_reports_an_end_before_listening(tmp_path: Path, forked: bool) -> None:
    """A process that dies at start is an assertion with its output, not a time-out."""
    gateway = GatewayProcess(tmp_path, accounts=[account("http://127.0.0.1:1/v1")], forked=forked)
    gateway.write("this is no toml")
    with pytest.raises(AssertionError, match="it ended"):
        gateway.start()
    assert gateway.process is None


@pytest.mark.parametrize("forked", [True, False])
def test_gateway_process_starts_answers_and_stops(
    provider: ScriptedProvider, start_gateway: Callable[..., GatewayProcess], forked: bool
) -> None:
    """The process listens, relays to the provider, and ends with 0 on SIGTERM."""
    gateway = start_gateway(provider, forked=forked)
    body = {"model": "kit-model", "messages": [{"role": "user", "content": "hi"}]}
    answer = httpx.post(gateway.url("/v1/chat/completions"), json=body, headers=gateway.headers)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello there."
    authorization = provider.exchanges[0].headers["authorization"]
    assert authorization == f"Bearer {PROVIDER_KEY}"
    with pytest.raises(AssertionError, match="exit code 0, expected 3"):
        gateway.stop(expect=3)  # twin: a wrong exit code is noticed
    assert any(line.get("msg") == "listening" for line in gateway.log)


def test_gateway_process_that_is_killed_says_by_what(
    provider: ScriptedProvider, start_gateway: Callable[..., GatewayProcess]
) -> None:
    """A forked process has a group of its own, and the signal that ended it is its exit code."""
    gateway = start_gateway(provider)
    assert gateway.process is not None
    assert os.getpgid(gateway.process.pid) == gateway.process.pid
    os.kill(gateway.process.pid, signal.SIGKILL)
    assert gateway.wait_exit() == -signal.SIGKILL
    gateway.kill()  # nothing is left to do


@pytest.mark.parametrize(
    ("text", "line"),
    [('{"msg": "listening"}', {"msg": "listening"}), ("{broken", None), ("Traceback", None)],
)
def test_parse_line_takes_json_objects_alone(text: str, line: object) -> None:
    """Output that is no JSON object is no log line."""
    assert parse_line(text) == line
