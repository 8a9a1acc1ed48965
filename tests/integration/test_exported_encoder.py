"""Another encoder, from a local folder to a forecast through the front door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from gateway.__main__ import main
from tests.kit import steps
from tests.kit.gateway import GatewayProcess
from tests.kit.provider import ScriptedProvider
from tests.kit.tiny_bert import write_bert

Start = Callable[..., GatewayProcess]
PROMPT = "What is the name of the sea, and what of the lake?"


def predictor(gateway: GatewayProcess) -> dict[str, Any]:
    stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers).json()
    shown: dict[str, Any] = stats["predictor"]
    return shown


def forecast(gateway: GatewayProcess) -> dict[str, Any]:
    body = {"prompt": PROMPT, "model": "kit-model"}
    answer = httpx.post(gateway.url("/predict"), json=body, headers=gateway.headers, timeout=30)
    said: dict[str, Any] = answer.json()
    return said


def test_exported_encoder_serves_forecasts_by_its_name(
    start_gateway: Start, provider: ScriptedProvider, tmp_path: Path
) -> None:
    """Exported by the command, chosen by EMBEDDING_MODEL_NAME, a chat relayed and learned:
    the same prompt is then forecast from the tenant's own neighbours, and was not before."""
    write_bert(tmp_path / "tiny", vocabulary="unigram")
    home = tmp_path / "models"
    out = ["--out", str(home / "encoders"), "--name", "tiny-multilingual"]
    assert main(["models", "export", str(tmp_path / "tiny"), *out]) == 0
    gateway = start_gateway(
        provider,
        predict={"enabled": True, "models_path": str(home)},
        env={"EMBEDDING_MODEL_NAME": "tiny-multilingual"},
    )
    while not predictor(gateway)["ready"]:
        pass
    shown = predictor(gateway)
    assert (shown["encoder"], shown["state"]) == ("tiny-multilingual", "ready")
    before = forecast(gateway)
    assert before["fallback_level"] == "model_only"
    provider.enqueue(steps.answer())
    body = {"model": "kit-model", "messages": [{"role": "user", "content": PROMPT}]}
    url = gateway.url("/v1/chat/completions")
    assert httpx.post(url, json=body, headers=gateway.headers, timeout=30).status_code == 200
    while predictor(gateway)["index_rows"] < 1:
        pass
    after = forecast(gateway)
    assert after["fallback_level"] == "tenant_neighbors"
    assert after["expected_output_tokens_p50"] < before["expected_output_tokens_p50"]
