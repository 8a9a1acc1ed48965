"""Another encoder, from a local folder to a forecast through the front door."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from gateway.__main__ import main
from tests.kit import steps
from tests.kit.gateway import GatewayProcess
from tests.kit.predictor import child_of, eventually, predictor
from tests.kit.provider import ScriptedProvider
from tests.kit.tiny_bert import write_bert

Start = Callable[..., GatewayProcess]
PROMPT = "What is the name of the sea, and what of the lake?"


def forecast(gateway: GatewayProcess) -> dict[str, Any]:
    body = {"prompt": PROMPT, "model": "kit-model"}
    answer = httpx.post(gateway.url("/predict"), json=body, headers=gateway.headers, timeout=30)
    said: dict[str, Any] = answer.json()
    return said


def with_tiny_encoder(
    start_gateway: Start, provider: ScriptedProvider, tmp_path: Path
) -> GatewayProcess:
    """A gateway that forecasts with an encoder exported a moment ago."""
    write_bert(tmp_path / "tiny", vocabulary="unigram")
    home = tmp_path / "models"
    out = ["--out", str(home / "encoders"), "--name", "tiny-multilingual"]
    assert main(["models", "export", str(tmp_path / "tiny"), *out]) == 0
    gateway = start_gateway(
        provider,
        predict={"enabled": True, "models_path": str(home)},
        env={"EMBEDDING_MODEL_NAME": "tiny-multilingual"},
    )
    eventually(lambda: predictor(gateway)["ready"])
    assert uses_it(gateway)
    return gateway


def uses_it(gateway: GatewayProcess) -> bool:
    shown = predictor(gateway)
    return (shown["encoder"], shown["state"]) == ("tiny-multilingual", "ready")


def test_exported_encoder_serves_forecasts_by_its_name(
    start_gateway: Start, provider: ScriptedProvider, tmp_path: Path
) -> None:
    """An encoder exported by the command and chosen by EMBEDDING_MODEL_NAME serves: after one
    relayed chat the same prompt is forecast from the tenant's own neighbours, and was not before.
    """
    gateway = with_tiny_encoder(start_gateway, provider, tmp_path)
    before = forecast(gateway)
    assert before["fallback_level"] == "model_only"
    provider.enqueue(steps.answer())
    body = {"model": "kit-model", "messages": [{"role": "user", "content": PROMPT}]}
    url = gateway.url("/v1/chat/completions")
    assert httpx.post(url, json=body, headers=gateway.headers, timeout=30).status_code == 200
    eventually(lambda: predictor(gateway)["index_rows"] >= 1)
    after = forecast(gateway)
    assert after["fallback_level"] == "tenant_neighbors"
    assert after["expected_output_tokens_p50"] < before["expected_output_tokens_p50"]


def test_models_path_of_a_reload_waits_for_a_restart_of_the_gateway_not_of_the_child(
    start_gateway: Start, provider: ScriptedProvider, tmp_path: Path
) -> None:
    """After a reload with another models folder, a child replaced after a crash still has the
    encoder whose vectors are in history. The twin: a restarted gateway uses the new folder, which
    lacks that encoder."""
    gateway = with_tiny_encoder(start_gateway, provider, tmp_path)
    gateway.edit(predict={"models_path": str(tmp_path / "elsewhere")})
    gateway.signal(signal.SIGHUP)
    gateway.wait_log(lambda x: str(x.get("msg")).startswith("predict.models_path changed"))
    child = child_of(gateway)
    assert child is not None
    os.kill(child, signal.SIGKILL)
    assert forecast(gateway)["expected_output_tokens_p50"] > 0  # which finds it gone
    eventually(lambda: predictor(gateway)["restarts"] == 1 and predictor(gateway)["ready"])
    assert uses_it(gateway)
    gateway.stop()
    gateway.start()
    eventually(lambda: "no artefact" in predictor(gateway)["state"])
