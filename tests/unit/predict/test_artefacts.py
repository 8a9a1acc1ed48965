"""Shipped artefacts: checked, loaded, or said to be missing."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable
from math import isnan
from pathlib import Path

import numpy as np
import pytest

from gateway.predict.artefacts import Artefacts
from gateway.predict.features import NAMES
from gateway.predict.prompt_view import PromptView
from gateway.predict.quantiles import NEIGHBOUR_NAMES
from gateway.shipped import shipped
from tests.unit.predict.conftest import NAME, Damage, flip, replace
from tests.unit.predict.plain import without_code

Make = Callable[[Damage], Path]


def test_artefacts_shipped_load_without_a_problem(artefacts: Artefacts) -> None:
    """The repository's own artefacts are whole and fit the code."""
    assert artefacts.problems == []
    assert artefacts.encoder is not None
    assert artefacts.full is not None
    assert artefacts.head is not None
    assert artefacts.stage0() is not None


def test_manifest_names_every_artefact_with_origin_and_licence() -> None:
    """Each table has file, sha256, origin, licence and command; each hash is the file's."""
    folder = shipped("models")
    manifest = tomllib.loads((folder / "manifest.toml").read_text())
    for table in manifest.values():
        assert {"file", "sha256", "origin", "licence", "command"} <= table.keys()
        data = (folder / table["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == table["sha256"]
    named = {table["file"] for table in manifest.values()}
    kinds = (".onnx", ".txt", ".json", ".npy", ".npz", ".bin")
    tests_own = {"sentences.txt", "encoder_reference.npz"}
    lying = {p.name for p in folder.iterdir() if p.suffix in kinds} - tests_own
    assert lying == named


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip("encoder.onnx"), "encoder.onnx: the sha256 is not the manifest's"),
        (flip("tokenizer.json"), "tokenizer.json: the sha256 is not the manifest's"),
        (replace("encoder.onnx", None), "encoder.onnx cannot be read"),
    ],
)
def test_artefacts_without_encoder_keep_stage0(damaged: Make, damage: Damage, said: str) -> None:
    """A bad encoder costs neighbours and the full model, not stage 0."""
    found = Artefacts(damaged(damage), NAME, 64)
    assert [said in problem for problem in found.problems] == [True]
    assert (found.encoder, found.full, found.encoder_name) == (None, None, "")
    assert found.stage0() is not None


@pytest.mark.parametrize("name", ["full.txt", "full_scale.txt", "projection.npy"])
def test_artefacts_without_full_model_keep_the_rest(damaged: Make, name: str) -> None:
    """A bad full model leaves encoder and stage 0."""
    found = Artefacts(damaged(flip(name)), NAME, 64)
    assert len(found.problems) == 1
    assert found.full is None
    assert found.encoder is not None
    assert found.stage0() is not None


@pytest.mark.parametrize("damage", [flip("full_short.txt"), replace("full_short.txt", None)])
def test_artefacts_without_booster_of_short_answers_keep_the_rest(
    damaged: Make, damage: Damage
) -> None:
    """A bad booster of P(short) is said, and the grid speaks alone."""
    found, whole = Artefacts(damaged(damage), NAME, 64), Artefacts(shipped("models"), NAME, 64)
    assert [problem.startswith("full_short.txt") for problem in found.problems] == [True]
    assert found.full is not None
    assert whole.full is not None
    assert found.projection is not None
    row = [1.0] * (len(NAMES) + len(found.projection) - 1 + len(NEIGHBOUR_NAMES))
    assert found.full.short(row) is None
    assert whole.full.short(row) is not None
    assert found.full.grid(row) == whole.full.grid(row)


def test_artefacts_refuse_tables_with_an_unknown_column(damaged: Make) -> None:
    """A leaning over features this code does not have is said, before anything reads them."""

    def rename(folder: Path) -> None:
        tables = json.loads((folder / "tables.json").read_text())
        tables["leaning"]["names"][0] = "no such feature"
        (folder / "tables.json").unlink()
        (folder / "tables.json").write_text(json.dumps(tables))
        name_again(folder, "tables", "tables.json")

    found = Artefacts(damaged(rename), NAME, 64)
    assert any(problem.startswith("tables.json: leaning") for problem in found.problems)
    assert found.tables is None


@pytest.mark.parametrize("damage", [flip("head.npz"), replace("head.npz", None)])
def test_artefacts_without_head_keep_the_rest(damaged: Make, damage: Damage) -> None:
    """A bad head is said, and costs the head alone."""
    found = Artefacts(damaged(damage), NAME, 64)
    assert [problem.startswith("head.npz") for problem in found.problems] == [True]
    assert found.head is None
    assert None not in (found.encoder, found.full, found.stage0())


def test_artefacts_leave_aside_a_head_of_another_encoder(damaged: Make) -> None:
    """A head whose codes are of another width is not used; the right one is."""

    def narrow(folder: Path) -> None:
        with np.load(folder / "head.npz") as file:
            parts = dict(file)
        parts["first.weight"] = parts["first.weight"][:, 1:]
        (folder / "head.npz").unlink()
        np.savez(folder / "head.npz", **parts)
        name_again(folder, "head", "head.npz")

    found = Artefacts(damaged(narrow), NAME, 64)
    assert found.problems == ["head.npz was made for codes of 63, not 64"]
    assert found.head is None


def test_artefacts_of_a_plain_encoder_want_no_head(damaged: Make) -> None:
    """An encoder without codes needs no head: nothing is missing."""

    def plain(folder: Path) -> None:
        for name in ("encoder.onnx", "head.npz"):
            (folder / name).unlink()
        without_code(folder / "encoder.onnx")
        name_again(folder, "encoder", "encoder.onnx")

    found = Artefacts(damaged(plain), NAME, 64)
    assert (found.problems, found.head) == ([], None)
    assert found.full is not None


def name_again(folder: Path, table: str, file: str) -> None:
    """Put a file's true hash into the manifest."""
    text = (folder / "manifest.toml").read_text()
    old = tomllib.loads(text)[table]["sha256"]
    new = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "manifest.toml").unlink()
    (folder / "manifest.toml").write_text(text.replace(old, new))


@pytest.mark.parametrize("name", ["stage0.txt", "stage0_scale.txt", "tables.json"])
def test_artefacts_without_stage0_keep_the_encoder(damaged: Make, name: str) -> None:
    """Without tables or trees stage 0 is None; the encoder still serves neighbours."""
    found = Artefacts(damaged(flip(name)), NAME, 64)
    assert found.problems
    assert found.stage0() is None
    assert found.encoder is not None


@pytest.mark.parametrize("content", [None, b"not toml [", b"\xff\xfe", b"[encoder]\nfile = 'x'\n"])
def test_artefacts_without_manifest_are_none(damaged: Make, content: bytes | None) -> None:
    """No usable manifest: nothing is loaded, and the reason is said."""
    found = Artefacts(damaged(replace("manifest.toml", content)), NAME, 64)
    assert found.problems
    assert (found.encoder, found.full, found.stage0()) == (None, None, None)


def test_artefacts_of_an_encoder_not_shipped_say_so() -> None:
    """Another encoder's name does not silently get this one's vectors."""
    found = Artefacts(shipped("models"), "paraphrase-multilingual-MiniLM-L12-v2", 64)
    assert found.encoder is None
    assert "paraphrase-multilingual-MiniLM-L12-v2" in found.problems[0]


def test_a_model_not_in_the_tables_has_its_family_s_mean(artefacts: Artefacts) -> None:
    """The mean over the members known of its family; NaN for a family nobody knows."""
    tables = artefacts.tables
    assert tables is not None
    known = [mean for name, mean in tables.models.items() if name.startswith("gpt-4")]
    assert min(known) < tables.model_mean("gpt-9-giant") < max(tables.models.values())
    assert isnan(tables.model_mean("unheard-of-1b"))


def test_stage0_tells_long_from_short(artefacts: Artefacts) -> None:
    """An essay is forecast longer than a yes-or-no question, whatever the model."""
    stage0, tables = artefacts.stage0(), artefacts.tables
    assert stage0 is not None
    assert tables is not None
    essay, question = (
        stage0.grid(tables.features_of(PromptView.of_prompt(text, tenant="t", model="new")))
        for text in (
            "Write a detailed 1500 word essay on the history of the printing press.",
            "Is seven a prime number? Answer only yes or no.",
        )
    )
    assert essay[3] > question[3] + 1.0
    assert list(essay) == sorted(essay)
    assert tuple(tables.features) == NAMES[: tables.width]
