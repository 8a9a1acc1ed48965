"""Which encoders there are to choose from: the shipped one, and those exported here.

An exported encoder is a folder of its own, `<predict.models_path>/encoders/<name>/`, with
encoder.onnx, tokenizer.json and a manifest (`sagesched models export` writes it). It is a plain
sentence encoder: neighbours are searched by its vectors. What was fitted on the shipped
encoder's vectors (projection, full model, head, warm start) is not for it, so beside the
neighbours the boosters of stage 0 speak, which read no vector.

Rows of history carry the encoder's name, and those of another are not searched. So a name
stands for one set of weights for good: the shipped one's is not taken twice, nor is another's.
"""

from __future__ import annotations

import re
from pathlib import Path

from gateway.predict.encoder import POSITIONS, Encoder
from gateway.predict.likeness import KEY, LEAST, MOST
from gateway.predict.manifest import ArtefactError, Folder

EXPORTED = "encoders"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def exported_in(models_path: str | Path) -> Path:
    """Where exported encoders lie (`predict.models_path` has the refitted models, too)."""
    return Path(models_path) / EXPORTED


def is_name(name: str) -> bool:
    """Whether an encoder may be called so: it is a folder's name, and no way out of one."""
    return _NAME.fullmatch(name) is not None


def is_shipped(models: Folder, name: str) -> bool:
    return models.about("encoder").get("name") == name


def find(models: Folder, exported: Path | None, name: str) -> Folder:
    """The folder that has the encoder of this name. Raises ArtefactError where none does."""
    if is_shipped(models, name):
        return models
    if exported is not None and is_name(name) and (exported / name).is_dir():
        found = Folder(exported / name)
        if found.about("encoder").get("name") != name:
            raise ArtefactError(f"{exported / name} is not of the encoder {name!r}")
        return found
    known = ", ".join(repr(one) for one in names(models, exported))
    raise ArtefactError(f"no artefact for the encoder {name!r} (there is {known})")


def names(models: Folder, exported: Path | None) -> list[str]:
    """All that `find` finds, the shipped one first."""
    others = [] if exported is None or not exported.is_dir() else sorted(exported.iterdir())
    own = [path.name for path in others if is_name(path.name) and path.is_dir()]
    return [str(models.about("encoder").get("name")), *own]


def load(files: Folder, max_tokens: int) -> Encoder:
    """The encoder of a folder. Raises ArtefactError, and what the libraries raise."""
    about = files.about("encoder")
    scale = about.get(KEY, 1.0)  # the shipped one has none, nor those exported before
    if not isinstance(scale, float | int) or not LEAST <= scale <= MOST:
        raise ArtefactError(f"manifest.toml: {KEY} is not within {LEAST} and {MOST}")
    return Encoder(
        files.path("encoder"),
        files.path("tokenizer"),
        max_tokens=max_tokens,
        positions=int(about.get("positions", POSITIONS)),
        similarity_scale=float(scale),
    )
