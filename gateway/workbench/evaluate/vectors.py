"""What the encoder says, made once and kept: all variants of an evaluation read the same.

The encoder is nine tenths of a replay's time and the same for every variant, so each
distinct prompt (text and system prompt) is encoded once, by a few processes, and kept in a
file for the next run. What replays see is `Recalled`, an encoder that only remembers. The
file is of one encoder (its name, its hash, its token cap); that of another is not read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from msgspec import Struct

from gateway.errors import SettingsError
from gateway.predict.artefacts import Artefacts
from gateway.predict.encoder import (
    Encoder,
    Reading,
    Vector,
    exported_folder,
    find_encoder,
    unknown_share,
)
from gateway.predict.manifest import ArtefactError, Folder
from gateway.settings.schema import Predict
from gateway.workbench.progress import Progress, spread

CHUNK = 64  # texts a worker takes at once


class Prompt(NamedTuple):
    """What the encoder reads of a request."""

    text: str
    system: str = ""


class Known(Struct, frozen=True):
    """A prompt's vector and code, and what they took: milliseconds of CPU."""

    vector: Vector
    ms: float
    code: Vector | None = None


class Recalled(Encoder):
    """An encoder that has read everything already."""

    def __init__(
        self,
        known: Mapping[bytes, Known],
        width: int,
        max_tokens: int,
        reader: Encoder | None = None,
    ) -> None:
        self._known = known
        self._reader = reader  # whose tokens tell how much of a text is known
        self._readings: dict[bytes, Reading] = {}
        self.width = width
        self.code_width = 0 if reader is None else reader.code_width
        self.similarity_scale = 1.0 if reader is None else reader.similarity_scale
        self.max_tokens = max_tokens
        self.hits = self.misses = 0

    def read(self, text: str, key: bytes | None = None, system: str = "") -> Reading:
        self.hits += 1
        own = prompt_key(Prompt(text, system))
        reading = self._readings.get(own)
        if reading is None:
            reader = self._reader
            share = 0.0 if reader is None else unknown_share(reader.tokens(text), reader.marks)
            known = self._known[own]
            reading = self._readings[own] = Reading(known.vector, share, known.code)
        return reading

    def resize(self, max_tokens: int) -> None:
        if max_tokens != self.max_tokens:
            raise ValueError("these vectors were made under another token cap")


def prompt_key(prompt: Prompt) -> bytes:
    both = f"{prompt.text}\x00{prompt.system}".encode("utf-8", "surrogatepass")
    return blake2b(both, digest_size=16).digest()


def encoder_id(models: Path, settings: Predict) -> str:
    """What must be the same for a stored vector to be used again."""
    try:
        exported = exported_folder(settings.models_path)
        own = find_encoder(Folder(models), exported, settings.embedding_model_name)
        sha256 = own.about("encoder")["sha256"]
    except ArtefactError as error:
        raise SettingsError(f"{models}: {error}") from None
    return f"{settings.embedding_model_name} {sha256} {settings.max_encoder_tokens}"


def vectors_of(
    prompts: Sequence[Prompt],
    models: Path,
    settings: Predict,
    kept: Path,
    workers: int,
) -> dict[bytes, Known]:
    """Vectors of all prompts by `prompt_key`, from `kept` or made now and put there.

    Raises:
        SettingsError: there is no encoder to make them with.
    """
    name = encoder_id(models, settings)
    known = _load(kept, name)
    missing = {prompt_key(prompt): prompt for prompt in prompts}
    missing = {key: prompt for key, prompt in missing.items() if key not in known}
    if missing:
        order = sorted(
            missing, key=lambda key: len(missing[key].text)
        )  # like with like: even chunks
        chunks = [order[i : i + CHUNK] for i in range(0, len(order), CHUNK)]
        jobs = [[missing[key] for key in chunk] for chunk in chunks]
        bar = Progress("vectors", len(missing))
        made = spread(
            _read, jobs, _begin, (models, settings), workers, lambda job: bar.step(len(job))
        )
        for chunk, found in zip(chunks, made, strict=True):
            known |= dict(zip(chunk, found, strict=True))
        _save(kept, name, known)
    return known


class _Reader:
    def __init__(self, models: Path, settings: Predict) -> None:
        parts = Artefacts(
            *(models, settings.embedding_model_name, settings.max_encoder_tokens),
            exported=exported_folder(settings.models_path),
        )
        if parts.encoder is None:
            raise SettingsError(f"{models}: {'; '.join(parts.problems)}")
        self._encoder = parts.encoder

    def read(self, prompts: list[Prompt]) -> list[Known]:
        found = []
        for prompt in prompts:
            started = time.thread_time()
            reading = self._encoder.read(prompt.text, None, prompt.system)
            ms = 1000 * (time.thread_time() - started)
            found.append(Known(reading.vector, ms, reading.code))
        return found


_reader: _Reader | None = None  # of a worker process


def _begin(models: Path, settings: Predict) -> None:
    global _reader
    _reader = _Reader(models, settings)


def _read(prompts: list[Prompt]) -> list[Known]:
    assert _reader is not None
    return _reader.read(prompts)


def _load(path: Path, name: str) -> dict[bytes, Known]:
    """What is kept for this encoder; nothing where the file is another's, or broken."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["encoder"]) != name:
                return {}
            keys, vectors, ms, codes = (file[n] for n in ("keys", "vectors", "ms", "codes"))
    except (OSError, ValueError, KeyError, BadZipFile, EOFError):
        return {}
    return {
        key.tobytes(): Known(vector, float(took), code if len(code) else None)
        for key, vector, took, code in zip(keys, vectors, ms, codes, strict=True)
    }


def _save(path: Path, name: str, known: Mapping[bytes, Known]) -> None:
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        np.savez(
            file,
            encoder=np.array(name),
            keys=np.array([list(key) for key in known], np.uint8),
            vectors=np.array([item.vector for item in known.values()], np.float32),
            ms=np.array([item.ms for item in known.values()], np.float32),
            codes=np.array([_code(item) for item in known.values()], np.float32),
        )
    new.replace(path)


def _code(item: Known) -> list[float]:
    return [] if item.code is None else [float(value) for value in item.code]
