"""Folders of artefacts, complete and damaged, for the predictor's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.prices import Price
from gateway.predict.teaching import LearningForecaster
from gateway.settings.schema import Predict
from gateway.shipped import shipped

NAME = "minilm-l6-length-1"
Damage = Callable[[Path], object]


@pytest.fixture(scope="session")
def artefacts() -> Artefacts:
    """The shipped artefacts. Shared: tests use them on one thread, one after the other."""
    return Artefacts(shipped("models"), NAME, 64)


@pytest.fixture
def forecaster(artefacts: Artefacts) -> LearningForecaster:
    """A forecaster that learned nothing yet, with a price for the model "m"."""
    return LearningForecaster(Predict(), artefacts, b"key", {"m": Price(prompt=1.0, output=10.0)})


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[Damage], Path]:
    """A function that copies models/ (by links) and damages the copy."""

    def make(damage: Damage) -> Path:
        folder = tmp_path / "models"
        folder.mkdir()
        for path in shipped("models").iterdir():
            if path.is_file():
                (folder / path.name).symlink_to(path)
        damage(folder)
        return folder

    return make


def replace(name: str, content: bytes | None) -> Damage:
    """Replace a file's content; None removes the file."""

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
