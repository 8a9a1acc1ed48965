"""The shipped artefacts: found, checked by sha256, loaded.

`models/manifest.toml` names every file and its hash. A file that is missing or altered is
not loaded, and only what needs it is lost: without the encoder there are no neighbours,
without the full model stage 0 stands in for it, without stage 0 the heuristic. What is
wrong is said in `Artefacts.problems`, for the snapshot and the log; nothing is raised.
"""

from __future__ import annotations

import hashlib
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from math import nan
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gateway.predict.boosters import Booster
from gateway.predict.encoder import Encoder
from gateway.predict.features import NAMES, PromptView, features
from gateway.predict.quantiles import NEIGHBOUR_NAMES, Grid, rearranged
from gateway.types import QUANTILE_LEVELS

T = TypeVar("T")
Projection = npt.NDArray[np.float32]


class ArtefactError(Exception):
    """A file of models/ is missing, altered or of another format."""


class Residual(Struct, frozen=True):
    """Quantiles of the residual at some predicted locations, in log1p tokens."""

    at: list[float]
    residuals: list[list[float]]


class Tables(Struct, frozen=True):
    """models/tables.json: what the boosters need beside their trees."""

    features: list[str]
    neighbour_features: list[str]
    levels: list[float]
    mean: float
    models: dict[str, float]  # mean log1p length by model
    tasks: dict[str, float]
    stage0: Residual
    full: Residual

    def features_of(self, view: PromptView) -> list[float]:
        task = self.tasks.get(view.task_type, nan) if view.task_type else nan
        return features(view, self.models.get(view.model, nan), task)


class LengthModel:
    """A booster for the location and its residual quantiles: features in, grid out.

    Belongs to one thread, as its booster does.
    """

    def __init__(self, text: str, width: int, residual: Residual) -> None:
        self._booster = Booster(text, width)
        self._at = residual.at
        self._residuals = residual.residuals

    def grid(self, row: list[float]) -> Grid:
        """Quantiles of log1p(output tokens); some 10 µs."""
        centre = self._booster.predict(row)
        at, last = self._at, len(self._at) - 1
        i = bisect_right(at, centre) - 1
        if i < 0 or i >= last:
            return rearranged([centre + r for r in self._residuals[max(0, min(i, last))]])
        share = (centre - at[i]) / (at[i + 1] - at[i])
        low, high = self._residuals[i], self._residuals[i + 1]
        return rearranged([centre + a + share * (b - a) for a, b in zip(low, high, strict=True)])


class Folder:
    """models/ and its manifest. Raises ArtefactError when the manifest is unusable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._manifest = tomllib.loads((folder / "manifest.toml").read_text(encoding="utf-8"))
        except OSError as error:
            raise ArtefactError(f"manifest.toml cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ArtefactError(f"manifest.toml is not valid: {error}") from None

    def about(self, name: str) -> Mapping[str, Any]:
        """The manifest's table of one artefact."""
        table = self._manifest.get(name)
        if not isinstance(table, dict) or "file" not in table or "sha256" not in table:
            raise ArtefactError(f"manifest.toml does not describe {name!r}")
        return table

    def path(self, name: str) -> Path:
        """An artefact's file, its hash checked."""
        table = self.about(name)
        path = self._folder / str(table["file"])
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ArtefactError(f"{path.name} cannot be read: {error.strerror}") from None
        if found != table["sha256"]:
            raise ArtefactError(f"{path.name}: the sha256 is not the manifest's")
        return path


class Artefacts:
    """Everything loadable of a folder; the rest is None and explained in `problems`.

    Args:
        folder: models/.
        encoder_name: the encoder wanted (`predict.embedding_model_name`).
        max_tokens: what it reads of a text.
    """

    def __init__(self, folder: Path, encoder_name: str, max_tokens: int) -> None:
        self.problems: list[str] = []
        self.encoder_name = ""
        self.tables: Tables | None = None
        self.encoder: Encoder | None = None
        self.projection: Projection | None = None
        self.full: LengthModel | None = None
        self._stage0_text: str | None = None
        files = self._try("models", lambda: Folder(folder))
        if files is None:
            return
        self.tables = self._try("tables", lambda: _tables(files.path("tables")))
        if self.tables is not None:
            self._stage0_text = self._try("stage0", lambda: _text(files.path("stage0")))
        self.encoder = self._try("encoder", lambda: _encoder(files, encoder_name, max_tokens))
        if self.encoder is None:
            return
        self.encoder_name = encoder_name
        self.projection = self._try("projection", lambda: np.load(files.path("projection")))
        if self.tables is not None and self.projection is not None:
            tables, parts = self.tables, len(self.projection) - 1
            width = len(NAMES) + parts + len(NEIGHBOUR_NAMES)
            self.full = self._try(
                "full", lambda: LengthModel(_text(files.path("full")), width, tables.full)
            )

    def stage0(self) -> LengthModel | None:
        """A fresh stage-0 model: each thread takes its own."""
        text, tables = self._stage0_text, self.tables
        if text is None or tables is None:
            return None
        return self._try("stage0", lambda: LengthModel(text, len(NAMES), tables.stage0))

    def _try(self, what: str, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except Exception as error:  # whatever a library makes of a bad file
            text = str(error) if isinstance(error, ArtefactError) else f"{what}: {error}"
            self.problems.append(" ".join(text.split())[:200])
            return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _tables(path: Path) -> Tables:
    tables = msgspec.json.decode(path.read_bytes(), type=Tables)
    if (
        tuple(tables.features) != NAMES
        or tuple(tables.neighbour_features) != NEIGHBOUR_NAMES
        or tuple(tables.levels) != QUANTILE_LEVELS
    ):
        raise ArtefactError("tables.json was made for other features or quantile levels")
    return tables


def _encoder(files: Folder, name: str, max_tokens: int) -> Encoder:
    shipped = files.about("encoder").get("name")
    if shipped != name:
        raise ArtefactError(f"no artefact for the encoder {name!r} (there is {shipped!r})")
    return Encoder(files.path("encoder"), files.path("tokenizer"), max_tokens=max_tokens)
