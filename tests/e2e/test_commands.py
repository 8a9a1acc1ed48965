"""The command line as a person uses it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.test_openai_client import free_port
from tests.kit.command import sagesched
from tests.kit.gateway import ROOT, GatewayProcess

SHIPPED = (ROOT / "gateway.toml").read_text()


def test_check_accepts_the_shipped_settings() -> None:
    """The shipped file is valid without any environment."""
    done = sagesched("check", forked=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 accounts" in done.stdout


def test_check_names_retired_keys_and_accepts_them(tmp_path: Path) -> None:
    """A file of an earlier version is valid; keys without effect are listed on stderr with why."""
    file = tmp_path / "gateway.toml"
    shipped = (ROOT / "gateway.toml").read_text()
    file.write_text(shipped.replace("[schedule]", "[schedule]\nhysteresis = 0.2"))
    done = sagesched("check", "--config", str(file))
    assert (done.returncode, "ok" in done.stdout) == (0, True)
    assert "schedule.hysteresis is retired and ignored: a constant, 0.15" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("port = 3000 ", 'port = "x" ', ["server.port", "int"]),
        ("port = 3000 ", "port = 70000 ", ["server.port", "65535"]),
        ("[server]", "[server]\nprot = 1", ["server", "prot"]),
        ("[[accounts]]", "[accounts", ["TOML"]),
        ('"env:DEMO_API_KEY"', '"sk-123"', ["demo-a", "api_key", "env:NAME"]),
        ('"http://127.0.0.1:4010/v1"', '"127.0.0.1"', ["demo-a", "base_url", "expected"]),
        ('host = "127.0.0.1"', 'host = "0.0.0.0"', ["anonymous", "loopback"]),
        ('name = "demo-b"', 'name = "demo-a"', ["accounts", "demo-a", "twice"]),
        ("anonymous = true", 'keys = ["secret"]', ["keys", "sha256"]),
        ("max_wait_s = 600", "max_wait_s = 0", ["schedule.max_wait_s"]),
    ],
)
def test_check_names_file_path_and_expectation(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    """A broken file is exit code 2 and one line with all that is needed to repair it, and nothing
    starts."""
    assert old in SHIPPED
    broken = tmp_path / "broken.toml"
    broken.write_text(SHIPPED.replace(old, new, 1))
    for command in ("check", "serve"):
        done = sagesched(command, "--config", str(broken))
        assert done.returncode == 2
        assert str(broken) in done.stderr
        for word in words:
            assert word in done.stderr
        assert done.stderr.count("\n") == 1
    assert "sk-123" not in done.stderr


def test_seed_environment_names_override_and_one_is_ignored(tmp_path: Path) -> None:
    """PORT and the like win over the file, and PREDICTOR_BASE_URL gets a warning."""
    process = _shipped(tmp_path, env={"HEAVY_INFLIGHT_TOKENS": "4321", "PREDICTOR_BASE_URL": "x"})
    with process:
        process.wait_log(lambda x: x.get("msg", "").startswith("PREDICTOR_BASE_URL"))
        stats = httpx.get(process.url("/stats"), headers=process.admin_headers).json()
        assert stats["pools"][0]["classes"]["heavy"]["budget_tokens"] == 4321
    bad = sagesched("check", forked=False, PORT="many")
    assert bad.returncode == 2
    assert "PORT" in bad.stderr


def _shipped(directory: Path, env: dict[str, str] | None = None, demo: int = 0) -> GatewayProcess:
    process = GatewayProcess(directory, accounts=[], env=env, forked=True)
    text = SHIPPED.replace("4010", str(demo or free_port())).replace("port = 3000 ", "port = 0 ")
    text = text.replace("base_latency_s = 0.15", "base_latency_s = 0.01")
    process.write(text.replace("token_latency_s = 0.01", "token_latency_s = 0.001"))
    return process


def test_printed_lines_work_from_anywhere(tmp_path: Path) -> None:
    """The lines that `make run` prints can be pasted in any folder and work."""
    process = _shipped(tmp_path, env={"SAGESCHED_ADMIN_TOKEN": ""})
    with process:
        process.wait_log(lambda x: x.get("msg") == "listening")
        httpx.get(process.url("/health"))
        lines = [x.strip() for x in process.output if x.startswith("  ")]
        export, *commands = lines
        assert export.startswith("export SAGESCHED_ADMIN_TOKEN=")
        assert len(commands) == 5
        for command in commands:
            done = subprocess.run(
                ["bash", "-c", f"{export}; {command}"],
                cwd="/",
                env={"PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, (command, done.stderr)
            assert done.stdout.strip()


def test_ask_names_what_went_wrong(tmp_path: Path) -> None:
    """A missing gateway and an unknown model are one sentence and an exit code."""
    nobody = f"http://127.0.0.1:{free_port()}"
    for more in ([], ["--stream"]):
        done = sagesched("ask", "--url", nobody, *more, "hi")
        assert done.returncode == 2
        assert done.stderr.startswith("sagesched: no gateway answers")
    with _shipped(tmp_path) as process:
        for more in ([], ["--stream"]):
            done = sagesched("ask", "--url", process.url(), "--model", "nobody", *more, "hi")
            assert done.returncode == 1
            assert "model_not_found" in done.stdout


def test_healthcheck_follows_the_settings(tmp_path: Path) -> None:
    """`healthcheck` exits with 0 when the gateway of this file is ready, else with 1."""
    with _shipped(tmp_path) as process:
        file = tmp_path / "other.toml"
        file.write_text(SHIPPED.replace("port = 3000 ", f"port = {process.port} "))
        assert sagesched("healthcheck", "--config", str(file)).returncode == 0
        with socket.create_server(("127.0.0.1", 0)) as proxy:  # a proxy is not for this machine
            elsewhere = f"http://127.0.0.1:{proxy.getsockname()[1]}"
            done = sagesched("healthcheck", "--config", str(file), http_proxy=elsewhere)
        assert done.returncode == 0
    assert sagesched("healthcheck", "--config", str(file)).returncode == 1


def test_onnxruntime_reports_no_events() -> None:
    """onnxruntime sends events unless this variable is set before any command imports it."""
    code = "import os, gateway.__main__; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "1"


def test_taken_port_is_named(tmp_path: Path) -> None:
    """A port in use is one line and exit code 1, and no demo provider stays behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file = tmp_path / "gateway.toml"
        port = taken.getsockname()[1]
        file.write_text(SHIPPED.replace("port = 3000 ", f"port = {port} "))
        done = sagesched("serve", "--config", str(file), cwd=tmp_path)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr


def test_demo_provider_runs_alone_with_the_settings_given(tmp_path: Path) -> None:
    """`demo-provider` reads [demo] of the file, with `--set` over it; a wrong key or value is one
    sentence."""
    file = tmp_path / "gateway.toml"
    file.write_text(SHIPPED.replace("port = 4010", "port = 0"))
    command = [sys.executable, "-m", "gateway", "demo-provider", "--config", str(file)]
    with subprocess.Popen(
        [*command, "--set", "rpm=1", "--end-with-stdin"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        body = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "hi"}]}
        answers = [httpx.post(url, json=body, timeout=30).status_code for _ in range(2)]
    assert answers == [200, 429]
    assert process.returncode == 0
    for wrong in ("no_such_key=1", "rpm=many"):
        done = sagesched("demo-provider", "--config", str(file), "--set", wrong)
        assert done.returncode == 2
        assert done.stderr.startswith("sagesched: --set: ")


def test_failed_start_takes_the_demo_provider_along(tmp_path: Path) -> None:
    """A store that cannot be opened is a clear line, and the demo's port is free again."""
    demo = free_port()
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "sagesched.db").mkdir()
    file = tmp_path / "gateway.toml"
    text = SHIPPED.replace("4010", str(demo)).replace("port = 3000 ", "port = 0 ")
    file.write_text(text)
    done = sagesched("serve", "--config", str(file), cwd=tmp_path)
    assert done.returncode == 2
    assert "sagesched.db" in done.stderr
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{demo}/health")


def test_history_seed_teaches_the_next_start(tmp_path: Path) -> None:
    """Seeded rows are in the store, and a gateway that starts on it knows them."""
    process = _shipped(tmp_path)
    done = sagesched(
        "history", "seed", "--count", "30", "--config", str(process.config), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("30 rows")
    with process:

        def rows() -> Any:
            stats = httpx.get(process.url("/stats"), headers=process.admin_headers).json()
            return stats["predictor"]["index_rows"]

        while rows() < 25:  # failed ones are kept, not searched
            pass


def test_key_is_made_with_its_hash(tmp_path: Path) -> None:
    """The hash that `key` prints admits that key and no other."""
    lines = sagesched("key").stdout.splitlines()
    key, hashed = lines[0].rsplit(" ", 1)[1], lines[1].rsplit(" ", 1)[1].strip('"')
    process = _shipped(tmp_path)
    text = process.config.read_text().replace("anonymous = true", f'keys = ["{hashed}"]')
    process.write(text)
    with process:
        url = process.url("/v1/models")
        assert httpx.get(url, headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert httpx.get(url, headers={"authorization": f"Bearer {key}x"}).status_code == 401


def test_interrupt_ends_a_foreground_run(tmp_path: Path) -> None:
    """Ctrl-C drains and ends with 0, and ends the demo provider, too."""
    process = _shipped(tmp_path)
    process.start()
    process.signal(signal.SIGINT)
    assert process.wait_exit() == 0
    process.process = None
