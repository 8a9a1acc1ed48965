"""Encoders chosen by name: the shipped one, and those exported beside it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.encoder import exported_folder, find_encoder, pack
from gateway.predict.lesson import Lesson
from gateway.predict.manifest import ArtefactError, ArtefactFolder
from gateway.predict.process.background_learning import NoHistory
from gateway.predict.process.wire import ChildSetup, ChildStatus, OpenModels, encoded
from gateway.predict.process.worker import ModelHost
from gateway.predict.prompt_view import PromptView
from gateway.predict.refit.fitting import full_rows, stage0_rows
from gateway.predict.refit.refit import refit
from gateway.predict.teaching import LearningForecaster
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import HistoryRow, Rung
from gateway.workbench.encoders.export import export
from tests.kit.tiny_bert import write_bert
from tests.unit.predict.conftest import NAME

MODELS = shipped("models")
VIEW = PromptView.of_prompt("what is the name of the sea", tenant="t", model="gpt-4o")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models_path with the exported encoder `tiny`, 32 numbers wide."""
    folder = tmp_path_factory.mktemp("home")
    write_bert(folder / "tiny")
    export(folder / "tiny", exported_folder(folder), "", MODELS, fp32=True)
    return folder


@pytest.fixture
def tiny(home: Path) -> Artefacts:
    return Artefacts(MODELS, "tiny", 64, exported=exported_folder(home))


def settings(home: Path) -> Predict:
    return structs.replace(Predict(), embedding_model_name="tiny", models_path=str(home))


def lesson(view: PromptView = VIEW, tokens: int = 40) -> Lesson:
    return Lesson(view, tokens, None, False, True, 1.0)


def test_an_exported_encoder_is_chosen_by_its_name(home: Path, tiny: Artefacts) -> None:
    """An exported encoder loads by its name without a problem, and so does the shipped one."""
    assert (tiny.problems, tiny.encoder_name) == ([], "tiny")
    assert tiny.encoder is not None
    assert tiny.encoder.width == 32
    own = Artefacts(MODELS, NAME, 64, exported=exported_folder(home))
    assert (own.problems, own.encoder_name) == ([], NAME)
    assert own.full is not None


def test_an_exported_encoder_comes_without_models_of_the_shipped_one(
    tiny: Artefacts,
) -> None:
    """Projection, full model and head are not loaded; stage 0, which reads no vector, is."""
    assert (tiny.projection, tiny.full, tiny.head) == (None, None, None)
    assert tiny.stage0() is not None


@pytest.mark.parametrize("name", ["nobody", "../home/encoders/tiny", "", ".", "tiny/"])
def test_an_unknown_encoder_is_reported_with_those_there_are(home: Path, name: str) -> None:
    """Nothing is loaded in its place, and no name leads out of the folder."""
    found = Artefacts(MODELS, name, 64, exported=exported_folder(home))
    assert (found.encoder, found.encoder_name) == (None, "")
    [problem] = found.problems
    assert f"no artefact for the encoder {name!r}" in problem
    assert f"'{NAME}', 'tiny'" in problem


def test_an_exported_encoder_that_was_altered_is_not_loaded(home: Path, tmp_path: Path) -> None:
    """The hash of an exported encoder is checked like the shipped ones'; stage 0 stays."""
    folder = exported_folder(tmp_path) / "tiny"
    folder.mkdir(parents=True)
    for path in (exported_folder(home) / "tiny").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with (folder / "encoder.onnx").open("ab") as file:
        file.write(b"\0")
    found = Artefacts(MODELS, "tiny", 64, exported=folder.parent)
    assert found.problems == ["encoder.onnx: the sha256 is not the manifest's"]
    assert found.encoder is None
    assert found.stage0() is not None


def test_an_exported_folder_under_another_name_is_refused(home: Path, tmp_path: Path) -> None:
    """A renamed folder is not loaded: its vectors would get another encoder's name."""
    exported_folder(tmp_path).mkdir()
    moved = exported_folder(tmp_path) / "other"
    moved.symlink_to(exported_folder(home) / "tiny")
    with pytest.raises(ArtefactError, match="is not of the encoder 'other'"):
        find_encoder(ArtefactFolder(MODELS), exported_folder(tmp_path), "other")


def test_exported_encoder_brings_learned_neighbours(home: Path, tiny: Artefacts) -> None:
    """Before any row stage 0's boosters forecast; after a repeat its neighbours do."""
    forecaster = LearningForecaster(settings(home), tiny, b"key", {})
    first = forecaster.forecast(VIEW)
    assert first.rung == Rung.MODEL_ONLY
    row = forecaster.learn(lesson())
    assert (row.encoder, len(row.vector)) == ("tiny", 2 * 32)
    again = forecaster.forecast(VIEW)
    assert again.rung == Rung.TENANT_NEIGHBORS
    assert abs(again.p50 - 40) < abs(first.p50 - 40)


def altered(home: Path, tmp_path: Path, pattern: str, by: str) -> Path:
    """A copy of the exported encoders with another manifest."""
    folder = exported_folder(tmp_path) / "tiny"
    folder.mkdir(parents=True)
    for path in (exported_folder(home) / "tiny").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = folder / "manifest.toml"
    text, count = re.subn(pattern, by, manifest.read_text())
    assert count == 1
    manifest.write_text(text)
    return folder.parent


def rungs_among_unrelated(artefacts: Artefacts, home: Path) -> list[Rung]:
    """Rungs of a prompt unrelated to twenty learned ones, and of one of these."""
    forecaster = LearningForecaster(settings(home), artefacts, b"key", {})
    learned = [PromptView.of_prompt(text, tenant="t", model="m") for text in STRANGERS]
    for view in learned:
        forecaster.learn(lesson(view))
    return [forecaster.forecast(VIEW).rung, forecaster.forecast(learned[3]).rung]


STRANGERS = [f"write {word} essay: {word}-{word}" for word in ("a", "xq", "77", "zzzz", "k9") * 4]


def test_unrelated_prompts_are_no_neighbours_of_a_narrow_encoder(
    home: Path, tiny: Artefacts, tmp_path: Path
) -> None:
    """The encoder's cosines all lie above the threshold: by the scale in its manifest a repeat is a
    neighbour and an unrelated prompt is not. The twin, a manifest without scale: both are."""
    assert rungs_among_unrelated(tiny, home) == [Rung.MODEL_ONLY, Rung.TENANT_NEIGHBORS]
    old = altered(home, tmp_path, r"similarity_scale = .*\n", "")
    before = Artefacts(MODELS, "tiny", 64, exported=old)
    assert before.encoder is not None
    assert before.encoder.similarity_scale == 1.0
    assert rungs_among_unrelated(before, home) == [Rung.TENANT_NEIGHBORS] * 2


@pytest.mark.parametrize("scale", ["0.0", "-3.0", "1e9", "nan", '"wide"'])
def test_an_encoder_with_an_impossible_scale_is_not_loaded(
    home: Path, tmp_path: Path, scale: str
) -> None:
    """A scale out of bounds is reported like any other fault of a manifest."""
    folder = altered(home, tmp_path, r"similarity_scale = .*", f"similarity_scale = {scale}")
    found = Artefacts(MODELS, "tiny", 64, exported=folder)
    assert found.encoder is None
    assert "similarity_scale" in found.problems[0]


def test_rows_of_another_encoder_are_not_searched(home: Path, tiny: Artefacts) -> None:
    """A row of another encoder is not remembered, even where its vector is as wide."""
    forecaster = LearningForecaster(settings(home), tiny, b"key", {})
    own = forecaster.learn(lesson())
    forecaster.forget()
    assert not forecaster.remember(structs.replace(own, encoder=NAME))
    assert forecaster.rows == 0
    assert forecaster.remember(own)
    assert forecaster.rows == 1


def rows_of(encoder: str, width: int, count: int = 300) -> list[HistoryRow]:
    """Rows as a gateway with this encoder stores them, with lengths by a rule."""
    draw = np.random.default_rng(0)
    forecaster = LearningForecaster(Predict(), Artefacts(MODELS, "none", 64), b"key", {})
    rows = []
    for i in range(count):
        view = PromptView.of_prompt(f"{'list' if i % 2 else 'name'} {i}", tenant="t", model="m")
        vector = draw.standard_normal(width).astype(np.float32)
        row = forecaster.learn(Lesson(view, 900 if i % 2 else 9, None, False, True, float(i)))
        near = np.zeros(10 + 7, "<f2").tobytes()
        rows.append(
            structs.replace(
                row, encoder=encoder, vector=pack(vector / np.linalg.norm(vector)), neighbours=near
            )
        )
    return rows


def test_refit_under_an_exported_encoder_fits_stage0_alone(
    home: Path, tiny: Artefacts, tmp_path: Path
) -> None:
    """The full model is fitted on no vector of an exported encoder; the same rows of the shipped
    one are used."""
    rows = rows_of("tiny", 32)
    assert (len(full_rows(rows, tiny)), len(stage0_rows(rows, tiny))) == (0, 300)
    report = refit(rows, tiny, tmp_path / "refits")
    assert report.accepted
    assert report.full.fitted_rows == 0
    shipped_artefacts = Artefacts(MODELS, NAME, 64)
    assert len(full_rows(rows, shipped_artefacts)) == 0
    assert len(full_rows(rows_of(NAME, 384), shipped_artefacts)) == 300
    adopted = tiny.refitted(tmp_path / "refits" / str(report.version))
    assert (adopted.problems, adopted.version, adopted.full) == ([], 1, None)


def test_the_predictor_s_process_finds_exported_encoders(home: Path) -> None:
    """The child opens the encoder that the settings name."""

    def opened(chosen: Predict) -> ChildStatus:
        setup = ChildSetup(chosen, str(MODELS), b"key", {}, frozenset())
        host = ModelHost(lambda: "normal", NoHistory)
        return host.answer(encoded(OpenModels(setup))).status

    here = opened(settings(home))
    assert (here.encoder, here.problems) == ("tiny", ())
    elsewhere = opened(structs.replace(settings(home), models_path=str(home / "elsewhere")))
    assert elsewhere.encoder == ""
    assert elsewhere.problems


def test_resize_keeps_an_encoder_s_cache_where_nothing_changes(tiny: Artefacts) -> None:
    """A cap beyond the encoder's positions is lowered to them, and clears no cache."""
    encoder = tiny.encoder
    assert encoder is not None
    first = encoder.encode("the sea", b"key")
    encoder.resize(500)
    assert encoder.encode("the sea", b"key") is first
    encoder.resize(12)
    assert encoder.encode("the sea", b"key") is not first
