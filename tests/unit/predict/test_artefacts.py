"""Artefacts are checked, loaded, or reported as missing."""

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
    """The repository's own artefacts load completely and fit the code."""
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
    ("damage", "reason"),
    [
        (flip("encoder.onnx"), "encoder.onnx: the sha256 is not the manifest's"),
        (flip("tokenizer.json"), "tokenizer.json: the sha256 is not the manifest's"),
        (replace("encoder.onnx", None), "encoder.onnx cannot be read"),
    ],
)
def test_artefacts_without_encoder_keep_stage0(damaged: Make, damage: Damage, reason: str) -> None:
    """A bad encoder costs neighbours and the full model, not stage 0."""
    found = Artefacts(damaged(damage), NAME, 64)
    assert [reason in problem for problem in found.problems] == [True]
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
    """A bad booster of P(short) is reported, and P(short) comes from the grid alone."""
    found, complete = Artefacts(damaged(damage), NAME, 64), Artefacts(shipped("models"), NAME, 64)
    assert [problem.startswith("full_short.txt") for problem in found.problems] == [True]
    assert found.full is not None
    assert complete.full is not None
    assert found.projection is not None
    row = [1.0] * (len(NAMES) + len(found.projection) - 1 + len(NEIGHBOUR_NAMES))
    assert found.full.short(row) is None
    assert complete.full.short(row) is not None
    assert found.full.grid(row) == complete.full.grid(row)


def test_artefacts_refuse_tables_with_an_unknown_column(damaged: Make) -> None:
    """Tables whose correction reads a feature that this code lacks are reported and not loaded."""

    def rename(folder: Path) -> None:
        tables = json.loads((folder / "tables.json").read_text())
        tables["leaning"]["names"][0] = "no such feature"
        (folder / "tables.json").unlink()
        (folder / "tables.json").write_text(json.dumps(tables))
        update_hash(folder, "tables", "tables.json")

    found = Artefacts(damaged(rename), NAME, 64)
    assert any(problem.startswith("tables.json: leaning") for problem in found.problems)
    assert found.tables is None


@pytest.mark.parametrize("damage", [flip("head.npz"), replace("head.npz", None)])
def test_artefacts_without_head_keep_the_rest(damaged: Make, damage: Damage) -> None:
    """A bad head is reported, and nothing else is lost."""
    found = Artefacts(damaged(damage), NAME, 64)
    assert [problem.startswith("head.npz") for problem in found.problems] == [True]
    assert found.head is None
    assert None not in (found.encoder, found.full, found.stage0())


def test_artefacts_leave_aside_a_head_of_another_encoder(damaged: Make) -> None:
    """A head made for codes of another width is not used; one of the right width is."""

    def narrow(folder: Path) -> None:
        with np.load(folder / "head.npz") as file:
            parts = dict(file)
        parts["first.weight"] = parts["first.weight"][:, 1:]
        (folder / "head.npz").unlink()
        np.savez(folder / "head.npz", **parts)
        update_hash(folder, "head", "head.npz")

    found = Artefacts(damaged(narrow), NAME, 64)
    assert found.problems == ["head.npz was made for codes of 63, not 64"]
    assert found.head is None


def test_artefacts_of_a_plain_encoder_need_no_head(damaged: Make) -> None:
    """Without codes a head is not looked for, and its absence is no problem."""

    def plain(folder: Path) -> None:
        for name in ("encoder.onnx", "head.npz"):
            (folder / name).unlink()
        without_code(folder / "encoder.onnx")
        update_hash(folder, "encoder", "encoder.onnx")

    found = Artefacts(damaged(plain), NAME, 64)
    assert (found.problems, found.head) == ([], None)
    assert found.full is not None


def update_hash(folder: Path, table: str, file: str) -> None:
    """Write a file's true hash into the manifest."""
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
    """Without a usable manifest nothing is loaded, and the reason is reported."""
    found = Artefacts(damaged(replace("manifest.toml", content)), NAME, 64)
    assert found.problems
    assert (found.encoder, found.full, found.stage0()) == (None, None, None)


def test_artefacts_of_an_unknown_encoder_name_it() -> None:
    """The name of another encoder does not silently get the shipped one's vectors."""
    found = Artefacts(shipped("models"), "paraphrase-multilingual-MiniLM-L12-v2", 64)
    assert found.encoder is None
    assert "paraphrase-multilingual-MiniLM-L12-v2" in found.problems[0]


def test_a_model_not_in_the_tables_has_its_family_s_mean(artefacts: Artefacts) -> None:
    """An unknown model has the mean of its family's members; NaN where the family is
    unknown too."""
    tables = artefacts.tables
    assert tables is not None
    members = [mean for name, mean in tables.models.items() if name.startswith("gpt-4")]
    assert min(members) < tables.model_mean("gpt-9-giant") < max(tables.models.values())
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
