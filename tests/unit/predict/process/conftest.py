"""Predictors that are stopped after the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.predict.process.predictor import Predictor
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from tests.unit.predict.process.inline_child import Children, Make


@pytest.fixture
async def make(anyio_backend: str) -> AsyncIterator[Make]:
    """Starts predictors, of inline children by default, and stops them after the test. A child
    that has gone is replaced almost at once."""
    made: list[Predictor] = []

    def build(
        settings: Predict | None = None, folder: Path | None = None, **more: Any
    ) -> Predictor:
        more = {"connect": Children(), "pause_s": 0.02, "tick_s": 0.005, **more}
        if (shelf := more.pop("shelf", None)) is not None:
            more["store"] = shelf.path
        predictor = Predictor(
            settings or Predict(), folder or shipped("models"), key=b"key", **more
        )
        made.append(predictor)
        predictor.start()
        return predictor

    yield build
    for predictor in made:
        await predictor.stop(10)
