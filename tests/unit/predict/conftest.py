"""Predictors, and folders of artefacts, whole and broken, for the predictor's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.process.predictor import Predictor
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from tests.unit.predict.process.asking import Make

NAME = "minilm-l6-length-1"
Damage = Callable[[Path], object]


@pytest.fixture(scope="session")
def artefacts() -> Artefacts:
    """The shipped artefacts. Shared: tests use them on one thread, one after the other."""
    return Artefacts(shipped("models"), NAME, 64)


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[Damage], Path]:
    """A copy of models/ (by links) with something done to it."""

    def make(damage: Damage) -> Path:
        folder = tmp_path / "models"
        folder.mkdir()
        for path in shipped("models").iterdir():
            if path.is_file():
                (folder / path.name).symlink_to(path)
        damage(folder)
        return folder

    return make


@pytest.fixture
def make() -> Iterator[Make]:
    """Starts predictors, and stops them after the test."""
    made: list[Predictor] = []

    def build(
        settings: Predict | None = None, folder: Path | None = None, **more: Any
    ) -> Predictor:
        predictor = Predictor(
            settings or Predict(), folder or shipped("models"), key=b"key", **more
        )
        made.append(predictor)
        predictor.start()
        return predictor

    yield build
    for predictor in made:
        predictor.stop(10)


def replace(name: str, content: bytes | None) -> Damage:
    """Put other content in the place of a file; None takes it away."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)

    return damage


def flip(name: str) -> Damage:
    """Change one byte in the middle of a file."""

    def damage(folder: Path) -> None:
        source = (folder / name).resolve()
        (folder / name).unlink()
        shutil.copy(source, folder / name)
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(bytes(data))

    return damage
