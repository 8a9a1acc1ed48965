"""A manifest describes the files of its folder, and an altered file is not given out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.predict.manifest import ArtefactError, ArtefactFolder, record, sha256

ABOUT: dict[str, Any] = {"origin": "x", "licence": "MIT", "command": 'make "it" — so'}


def test_record_is_read_back(tmp_path: Path) -> None:
    """Quotes, other alphabets, numbers and lists come back as they were written."""
    (tmp_path / "a.bin").write_bytes(b"one")
    record(tmp_path, "a", "a.bin", **ABOUT, name="模型", size=0.5, parts=[1, 2])
    about = ArtefactFolder(tmp_path).about("a")
    assert {**ABOUT, "name": "模型", "size": 0.5, "parts": [1, 2]}.items() <= about.items()
    assert ArtefactFolder(tmp_path).path("a") == tmp_path / "a.bin"
    assert about["sha256"] == sha256(tmp_path / "a.bin")


def test_record_keeps_figures_while_the_file_is_the_same(tmp_path: Path) -> None:
    """Figures stay while the file's bytes do; other tables stay in any case."""
    (tmp_path / "a.bin").write_bytes(b"one")
    record(tmp_path, "other", "a.bin", **ABOUT)
    record(tmp_path, "a", "a.bin", **ABOUT, tau=0.5)
    record(tmp_path, "a", "a.bin", **ABOUT)
    assert ArtefactFolder(tmp_path).about("a")["tau"] == 0.5
    (tmp_path / "a.bin").write_bytes(b"two")
    record(tmp_path, "a", "a.bin", **ABOUT)
    assert "tau" not in ArtefactFolder(tmp_path).about("a")
    assert ArtefactFolder(tmp_path).has("other")


def test_an_altered_or_missing_file_is_not_given_out(tmp_path: Path) -> None:
    """The hash is checked at each call: the file is given out until it is altered."""
    (tmp_path / "a.bin").write_bytes(b"one")
    record(tmp_path, "a", "a.bin", **ABOUT)
    assert ArtefactFolder(tmp_path).path("a").read_bytes() == b"one"
    (tmp_path / "a.bin").write_bytes(b"0ne")
    with pytest.raises(ArtefactError, match=r"a.bin: the sha256 is not the manifest's"):
        ArtefactFolder(tmp_path).path("a")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ArtefactError, match=r"a.bin cannot be read"):
        ArtefactFolder(tmp_path).path("a")
    with pytest.raises(ArtefactError, match="does not describe 'b'"):
        ArtefactFolder(tmp_path).about("b")
