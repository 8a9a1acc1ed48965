"""The gateway with and without the folder of its offline tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.test_openai_client import free_port
from tests.kit.gateway import ROOT, GatewayProcess

NO_SOURCE_TREE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
"""
"""Run at the start of every process: an editable install would find what the copy lacks."""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the package without gateway/workbench, beside the shipped data."""
    root = tmp_path / "installed"
    unwanted = shutil.ignore_patterns("workbench", "__pycache__")
    shutil.copytree(ROOT / "gateway", root / "gateway", ignore=unwanted)
    for name in ("models", "config", "gateway.toml"):
        (root / name).symlink_to(ROOT / name)
    (root / "sitecustomize.py").write_text(NO_SOURCE_TREE)
    return root


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program of `root` from a folder that is not its own; stderr lists its imports."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gateway", *arguments],
        cwd="/",
        env=environment(root),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def environment(root: Path) -> dict[str, str]:
    names = ("PORT", "SAGESCHED_ADMIN_TOKEN")
    return {k: v for k, v in os.environ.items() if k not in names} | {"PYTHONPATH": str(root)}


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Lines of standard error but those of `-X importtime`."""
    return [line for line in done.stderr.splitlines() if not line.startswith("import time:")]


def test_gateway_serves_without_the_workbench(installed: Path, tmp_path: Path) -> None:
    """Settings are checked, the process starts with predictor and demo, a request is answered."""
    done = command(installed, "check", "--config", str(installed / "gateway.toml"))
    assert (done.returncode, errors(done)) == (0, [])
    process = GatewayProcess(tmp_path, accounts=[], env={"PYTHONPATH": str(installed)})
    shipped = (ROOT / "gateway.toml").read_text()
    process.write(shipped.replace("4010", str(free_port())).replace("port = 3000 ", "port = 0 "))
    with process:
        body = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "Hello!"}]}
        answer = httpx.post(process.url("/v1/chat/completions"), json=body, timeout=30)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"]
        forecast = httpx.post(process.url("/predict"), json={"prompt": "Hello!"}, timeout=30)
        assert forecast.status_code == 200


def test_tools_are_absent_without_the_workbench(installed: Path) -> None:
    """--help names none of them, asking for one says why, and no import finds it elsewhere."""
    text = command(installed, "--help").stdout
    assert "serve" in text
    assert "simulate" not in text
    done = command(installed, "simulate", "--out", "x")
    assert done.returncode == 2
    (line,) = errors(done)
    assert line.startswith("sagesched: 'simulate' is an offline tool")
    code = [sys.executable, "-c", "import gateway.workbench"]
    assert subprocess.run(code, cwd="/", env=environment(installed), check=False).returncode == 1


@pytest.mark.parametrize("name", ["--help", "key", "check"])
def test_serving_commands_import_no_offline_tool(name: str) -> None:
    """With the folder in place nothing of it is loaded. (The twin: a tool's own help loads it.)"""
    settings = ["--config", str(ROOT / "gateway.toml")] if name == "check" else []
    done = command(ROOT, name, *settings)
    assert (done.returncode, errors(done)) == (0, [])
    assert "gateway.workbench" not in done.stderr
    assert "gateway.workbench" in command(ROOT, "load", "--help").stderr
