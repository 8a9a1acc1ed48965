"""The shipped artefacts: found, checked by sha256, loaded.

`models/manifest.toml` names every file and its hash. A file that is missing or altered is not
loaded, and only its users are lost: without the encoder there are no neighbours, without the full
model stage 0's forecast takes its place, without stage 0 the heuristic, without the head the
boosters are used alone. Nothing is raised; `Artefacts.problems` lists what is wrong, for the
snapshot and the log.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cached_property
from math import nan
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from gateway.predict.calibrate import model_family
from gateway.predict.encoder import Encoder, find_encoder, load_encoder
from gateway.predict.features import NAMES, UNKNOWN_RUNNING, features
from gateway.predict.head import Head
from gateway.predict.lengths import Booster, Columns, LengthModel, ResidualTable
from gateway.predict.manifest import ArtefactError, ArtefactFolder
from gateway.predict.prompt_view import PromptView
from gateway.predict.quantiles import NEIGHBOUR_NAMES
from gateway.predict.tenant_correction import CorrectionColumns, TenantCorrections
from gateway.types import QUANTILE_LEVELS

T = TypeVar("T")
BASE = (
    *("tables", "stage0", "stage0_scale", "full", "full_scale", "projection", "encoder", "head"),
)
"""The shipped files that a refit corrects."""

Projection = npt.NDArray[np.float32]


class Tables(Struct, frozen=True, dict=True):
    """models/tables.json: the boosters' inputs beside their trees."""

    features: list[str]
    neighbour_features: list[str]
    levels: list[float]
    mean: float
    models: dict[str, float]  # mean log1p length by model
    tasks: dict[str, float]
    stage0: ResidualTable
    full: ResidualTable
    correction_columns: CorrectionColumns | None = field(default=None, name="leaning")

    def features_of(
        self, view: PromptView, running: tuple[float, ...] = UNKNOWN_RUNNING
    ) -> list[float]:
        """The features of a request, all of `NAMES`; a model reads those it was fitted with."""
        task = self.tasks.get(view.task_type, nan) if view.task_type else nan
        return features(view, self.model_mean(view.model), task, running)

    def model_mean(self, model: str) -> float:
        """Mean log length of the model, else of its family, else NaN."""
        found = self.models.get(model)
        return self.families.get(model_family(model), nan) if found is None else found

    @cached_property
    def families(self) -> dict[str, float]:
        """Mean log length by model family."""
        members: dict[str, list[float]] = {}
        for model, mean in self.models.items():
            members.setdefault(model_family(model), []).append(mean)
        return {name: sum(means) / len(means) for name, means in members.items()}

    @property
    def width(self) -> int:
        """The number of `NAMES` that the models read."""
        return len(self.features)


class Texts(NamedTuple):
    """One model's boosters as LightGBM saves them."""

    location: str
    scale: str


class TailRow(Struct, frozen=True):
    """Residuals of the refitted models for one of the last answers, which they did not fit."""

    model: str
    tenant: str
    template: str
    stage0: float  # residual, log1p tokens
    full: float | None


class Refit(Struct, frozen=True):
    """The contents of a refit's folder, as refit/refit.py writes them."""

    version: int
    tables: Tables
    stage0: str  # booster's text; "" where the shipped model was not beaten
    full: str
    cheap: int  # features the boosters read
    near: int
    tail: tuple[TailRow, ...] = ()
    until_wall_s: float = 0.0  # when the last row fitted ended


def base_of(files: ArtefactFolder) -> dict[str, str]:
    """Hashes of the shipped files that a refit is a correction of."""
    return {name: str(files.about(name)["sha256"]) for name in BASE if files.has(name)}


def load_refit(folder: Path, shipped: ArtefactFolder) -> Refit:
    """Load and check a refit. Raises ArtefactError."""
    files = ArtefactFolder(folder)
    about = files.about("corrections")
    if about.get("base") != base_of(shipped):
        raise ArtefactError(f"refit {folder.name} is of other shipped models: left aside")
    try:
        found = msgspec.json.decode(files.path("corrections").read_bytes(), type=Refit)
    except msgspec.DecodeError as error:
        raise ArtefactError(f"refit {folder.name}: {error}") from None
    if found.cheap > len(NAMES) or found.near > len(NEIGHBOUR_NAMES):
        raise ArtefactError(f"refit {folder.name} was made for other features: left aside")
    _check(found.tables)
    return found


class Artefacts:
    """The loaded artefacts of a folder. One that cannot be loaded is None; `problems` has why.

    Args:
        folder: models/.
        encoder_name: `predict.embedding_model_name`.
        max_tokens: most tokens of a text that the encoder reads.
        only_stage0: do not load encoder, head, projection and full model.
        exported: folder of encoders exported here (encoder.py).
    """

    def __init__(
        self,
        folder: Path,
        encoder_name: str,
        max_tokens: int,
        *,
        only_stage0: bool = False,
        exported: Path | None = None,
    ) -> None:
        self.problems: list[str] = []
        self.encoder_name = ""
        self.tables: Tables | None = None
        self.shipped_tables: Tables | None = None
        self.encoder: Encoder | None = None
        self.projection: Projection | None = None
        self.full: LengthModel | None = None
        self.head: Head | None = None  # only for an encoder with codes
        self.version = 0  # of the refit in use; 0: as shipped
        self.tail: tuple[TailRow, ...] = ()
        self._files: ArtefactFolder | None = None
        self._stage0_texts: Texts | None = None
        self._full_texts: Texts | None = None
        self._short_text: str | None = None
        self._refit: Refit | None = None
        self._files = files = self._try("models", lambda: ArtefactFolder(folder))
        if files is None:
            return
        self._load_tables(files)
        own = None
        if not only_stage0:
            own = self._load_encoder(files, exported, encoder_name, max_tokens)
        if own is files:  # head and full model were fitted on the shipped encoder's vectors
            self._load_full(files)

    def stage0(self) -> LengthModel | None:
        """Load a fresh stage-0 model; None where there is none. Each user takes its own."""
        texts, tables, refit = self._stage0_texts, self.tables, self._refit
        if texts is None or tables is None:
            return None

        def load() -> LengthModel:
            own = None
            if refit is not None and refit.stage0:
                own = Booster(refit.stage0, Columns(refit.cheap))
            columns = Columns(tables.width)
            location, scale = (Booster(text, columns) for text in texts)
            return LengthModel(location, scale, tables.stage0, own)

        return self._try("stage0", load)

    def refitted(self, folder: Path | None) -> Artefacts:
        """A copy with a refit's corrections; as shipped without a folder.

        A refit of other shipped models, or for other features, is left aside and listed in
        `problems`.
        """
        new = copy(self)
        new.version, new.tail, new._refit, new.problems = 0, (), None, []
        files = self._files
        if files is None or self.tables is None:
            return self
        found = None if folder is None else new._try("refit", lambda: load_refit(folder, files))
        new.tables = self.shipped_tables
        if found is not None:
            new.version, new.tail = found.version, found.tail
            new.tables, new._refit = found.tables, found
        new.full = new._full()
        new.problems = [*self.problems, *new.problems]
        return new

    @property
    def base(self) -> dict[str, str]:
        """Hashes of the shipped files that a refit corrects."""
        assert self._files is not None
        return base_of(self._files)

    @property
    def texts(self) -> tuple[Texts | None, Texts | None]:
        """Stage 0's and the full model's boosters as LightGBM saves them."""
        return self._stage0_texts, self._full_texts

    @property
    def refit(self) -> Refit | None:
        """The refit in use, if any."""
        return self._refit

    @property
    def stage0_refit(self) -> str:
        """The refit's correction of stage 0 as LightGBM saves it; "": as shipped."""
        return "" if self._refit is None else self._refit.stage0

    @property
    def full_refit(self) -> str:
        """The refit's correction of the full model as LightGBM saves it; "": as shipped."""
        return "" if self._refit is None else self._refit.full

    def _load_tables(self, files: ArtefactFolder) -> None:
        self.tables = self._try("tables", lambda: _tables(files.path("tables")))
        self.shipped_tables = self.tables
        if self.tables is not None:
            self._stage0_texts = self._try("stage0", lambda: _texts(files, "stage0"))

    def _load_encoder(
        self, files: ArtefactFolder, exported: Path | None, name: str, max_tokens: int
    ) -> ArtefactFolder | None:
        """Load the encoder; its folder, None where it cannot be loaded."""
        own = self._try("encoder", lambda: find_encoder(files, exported, name))
        if own is None:
            return None
        self.encoder = self._try("encoder", lambda: load_encoder(own, max_tokens))
        if self.encoder is None:
            return None
        self.encoder_name = name
        return own

    def _load_full(self, files: ArtefactFolder) -> None:
        assert self.encoder is not None
        width = self.encoder.code_width
        if width:
            self.head = self._try("head", lambda: _head(files.path("head"), width))
        self.projection = self._try("projection", lambda: np.load(files.path("projection")))
        if self.tables is not None and self.projection is not None:
            self._full_texts = self._try("full", lambda: _texts(files, "full"))
            if files.has("full_short"):
                self._short_text = self._try("full_short", lambda: _text(files, "full_short"))
            self.full = self._full()

    def _full(self) -> LengthModel | None:
        """The full model; None where a part of it is missing."""
        texts, tables, projection = self._full_texts, self.tables, self.projection
        refit = self._refit
        if texts is None or tables is None or projection is None:
            return None
        parts = len(projection) - 1

        def load() -> LengthModel:
            columns = Columns(tables.width, parts, len(tables.neighbour_features))
            location, scale = (Booster(text, columns) for text in texts)
            own = short = None
            if (text := self._short_text) is not None:
                short = self._try("full_short", lambda: Booster(text, columns))
            if refit is not None and refit.full:
                own = Booster(refit.full, Columns(refit.cheap, parts, refit.near))
            return LengthModel(location, scale, tables.full, own, short)

        return self._try("full", load)

    def _try(self, what: str, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except Exception as error:  # libraries raise anything on a bad file
            text = str(error) if isinstance(error, ArtefactError) else f"{what}: {error}"
            self.problems.append(" ".join(text.split())[:200])
            return None


def _texts(files: ArtefactFolder, name: str) -> Texts:
    return Texts(_text(files, name), _text(files, f"{name}_scale"))


def _text(files: ArtefactFolder, name: str) -> str:
    return files.path(name).read_text(encoding="utf-8")


def _head(path: Path, width: int) -> Head:
    head = Head.load(path)
    if head.width != width:
        raise ArtefactError(f"{path.name} was made for codes of {head.width}, not {width}")
    return head


def _tables(path: Path) -> Tables:
    tables = msgspec.json.decode(path.read_bytes(), type=Tables)
    _check(tables)
    return tables


def _check(tables: Tables) -> None:
    if (
        tuple(tables.features) != NAMES[: tables.width]
        or tuple(tables.neighbour_features) != NEIGHBOUR_NAMES[: len(tables.neighbour_features)]
        or tuple(tables.levels) != QUANTILE_LEVELS
    ):
        raise ArtefactError("tables.json was made for other features or quantile levels")
    if tables.correction_columns is not None:
        try:
            TenantCorrections(tables.correction_columns)
        except ValueError as error:
            raise ArtefactError(f"tables.json: leaning: {error}") from None
