"""Sentence vectors, made once and kept: all variants of an evaluation read the same ones.

The encoder is nine tenths of a replay's time and the same for every variant, so each
distinct text is encoded once, by a few processes, and kept in a file for the next run. What
replays see is `Recalled`, an encoder that only remembers. The file is of one encoder (its
name, its hash, its token cap); that of another is not read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from msgspec import Struct

from gateway.errors import SettingsError
from gateway.predict.artefacts import ArtefactError, Artefacts, Folder
from gateway.predict.encoder import UNKNOWN, Encoder, Reading, Vector
from gateway.replay.evaluate_work import Progress, spread
from gateway.settings.schema import Predict

CHUNK = 64  # texts a worker takes at once


class Known(Struct, frozen=True):
    """A text's vector, and what it took: milliseconds of CPU."""

    vector: Vector
    ms: float


class Recalled(Encoder):
    """An encoder that has read everything already."""

    def __init__(
        self,
        vectors: Mapping[bytes, Vector],
        width: int,
        max_tokens: int,
        reader: Encoder | None = None,
    ) -> None:
        self._vectors = vectors
        self._reader = reader  # whose tokens tell how much of a text is known
        self._readings: dict[bytes, Reading] = {}
        self.width = width
        self.max_tokens = max_tokens
        self.hits = self.misses = 0

    def read(self, text: str, key: bytes | None = None) -> Reading:
        self.hits += 1
        known = text_key(text)
        reading = self._readings.get(known)
        if reading is None:
            tokens = [] if self._reader is None else self._reader.tokens(text)
            share = tokens.count(UNKNOWN) / max(len(tokens) - 2, 1)
            reading = self._readings[known] = Reading(self._vectors[known], share)
        return reading

    def resize(self, max_tokens: int) -> None:
        if max_tokens != self.max_tokens:
            raise ValueError("these vectors were made under another token cap")


def text_key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def encoder_id(models: Path, settings: Predict) -> str:
    """What must be the same for a stored vector to be used again."""
    try:
        sha256 = Folder(models).about("encoder")["sha256"]
    except ArtefactError as error:
        raise SettingsError(f"{models}: {error}") from None
    return f"{settings.embedding_model_name} {sha256} {settings.max_encoder_tokens}"


def vectors_of(
    texts: Sequence[str],
    models: Path,
    settings: Predict,
    kept: Path,
    workers: int,
) -> dict[bytes, Known]:
    """Vectors of all texts by `text_key`, from `kept` or made now and put there.

    Raises:
        SettingsError: there is no encoder to make them with.
    """
    name = encoder_id(models, settings)
    known = _load(kept, name)
    missing = {text_key(text): text for text in texts}
    missing = {key: text for key, text in missing.items() if key not in known}
    if missing:
        order = sorted(missing, key=lambda key: len(missing[key]))  # like with like: even chunks
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
        parts = Artefacts(models, settings.embedding_model_name, settings.max_encoder_tokens)
        if parts.encoder is None:
            raise SettingsError(f"{models}: {'; '.join(parts.problems)}")
        self._encoder = parts.encoder

    def read(self, texts: list[str]) -> list[Known]:
        found = []
        for text in texts:
            started = time.thread_time()
            vector = self._encoder.vector(text)
            found.append(Known(vector, 1000 * (time.thread_time() - started)))
        return found


_reader: _Reader | None = None  # of a worker process


def _begin(models: Path, settings: Predict) -> None:
    global _reader
    _reader = _Reader(models, settings)


def _read(texts: list[str]) -> list[Known]:
    assert _reader is not None
    return _reader.read(texts)


def _load(path: Path, name: str) -> dict[bytes, Known]:
    """What is kept for this encoder; nothing where the file is another's, or broken."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["encoder"]) != name:
                return {}
            keys, vectors, ms = file["keys"], file["vectors"], file["ms"]
    except (OSError, ValueError, KeyError, BadZipFile, EOFError):
        return {}
    return {
        key.tobytes(): Known(vector, float(took))
        for key, vector, took in zip(keys, vectors, ms, strict=True)
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
        )
    new.replace(path)
