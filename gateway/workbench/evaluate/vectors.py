"""Vectors of prompts, made once and stored: all variants of an evaluation read the same ones.

The encoder takes nine tenths of a replay's time and gives every variant the same, so each
distinct prompt (text and system prompt) is encoded once, by a few processes, and stored in a file
for the next run. A replay then reads them through `RecordedEncoder`. The file holds the vectors
of one encoder (its name, its hash, its token limit); the vectors of another one are not used.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from gateway.errors import SettingsError
from gateway.predict.artefacts import Artefacts
from gateway.predict.encoder import (
    EncodedPrompt,
    Encoder,
    Vector,
    exported_folder,
    find_encoder,
    unknown_share,
)
from gateway.predict.manifest import ArtefactError, ArtefactFolder
from gateway.settings.schema import Predict
from gateway.workbench.progress import load_arrays, save_arrays, spread

CHUNK = 64  # prompts that a worker takes at once


class Prompt(NamedTuple):
    """The part of a request that the encoder reads."""

    text: str
    system: str = ""


class PromptVector(Struct, frozen=True):
    """A prompt's vector and code, and the milliseconds of CPU they took."""

    vector: Vector
    ms: float
    code: Vector | None = None


class RecordedEncoder(Encoder):
    """An encoder that looks vectors up; a prompt without a stored vector is a KeyError.

    Args:
        vectors: by `prompt_key`.
        reader: the encoder whose tokens tell which share of a text it knows; None: share 0.
    """

    def __init__(
        self,
        vectors: Mapping[bytes, PromptVector],
        width: int,
        max_tokens: int,
        reader: Encoder | None = None,
    ) -> None:
        self._vectors = vectors
        self._reader = reader
        self._encoded: dict[bytes, EncodedPrompt] = {}
        self.width = width
        self.code_width = 0 if reader is None else reader.code_width
        self.similarity_scale = 1.0 if reader is None else reader.similarity_scale
        self.max_tokens = max_tokens

    def encode(self, text: str, key: bytes | None = None, system: str = "") -> EncodedPrompt:
        own = prompt_key(Prompt(text, system))
        encoded = self._encoded.get(own)
        if encoded is None:
            reader = self._reader
            share = (
                0.0 if reader is None else unknown_share(reader.tokens(text), reader.special_ids)
            )
            stored = self._vectors[own]
            encoded = self._encoded[own] = EncodedPrompt(stored.vector, share, stored.code)
        return encoded

    def resize(self, max_tokens: int) -> None:
        if max_tokens != self.max_tokens:
            raise ValueError("these vectors were made under another token cap")


def prompt_key(prompt: Prompt) -> bytes:
    """Key of a prompt in the file of vectors."""
    both = f"{prompt.text}\x00{prompt.system}".encode("utf-8", "surrogatepass")
    return blake2b(both, digest_size=16).digest()


def encoder_id(models: Path, settings: Predict) -> str:
    """Name of an encoder: vectors under the same name may be used again. Raises SettingsError."""
    try:
        exported = exported_folder(settings.models_path)
        own = find_encoder(ArtefactFolder(models), exported, settings.embedding_model_name)
        sha256 = own.about("encoder")["sha256"]
    except ArtefactError as error:
        raise SettingsError(f"{models}: {error}") from None
    return f"{settings.embedding_model_name} {sha256} {settings.max_encoder_tokens}"


def vectors_of(
    prompts: Sequence[Prompt],
    models: Path,
    settings: Predict,
    path: Path,
    workers: int,
) -> dict[bytes, PromptVector]:
    """Vectors of all prompts by `prompt_key`, read from `path` or made and stored there.

    Raises:
        SettingsError: there is no encoder.
    """
    name = encoder_id(models, settings)
    vectors = _load(path, name)
    missing = {prompt_key(prompt): prompt for prompt in prompts}
    missing = {key: prompt for key, prompt in missing.items() if key not in vectors}
    if missing:
        # Prompts of like length together make chunks that take equally long.
        order = sorted(missing, key=lambda key: len(missing[key].text))
        chunks = [order[i : i + CHUNK] for i in range(0, len(order), CHUNK)]
        jobs = [[missing[key] for key in chunk] for chunk in chunks]
        made = spread("vectors", _read, jobs, load_encoder, (models, settings), workers, len)
        for chunk, found in zip(chunks, made, strict=True):
            vectors |= dict(zip(chunk, found, strict=True))
        _save(path, name, vectors)
    return vectors


def load_artefacts(models: Path, settings: Predict) -> tuple[Artefacts, Encoder]:
    """The artefacts of the settings and their encoder. Raises SettingsError where it is missing."""
    artefacts = Artefacts(
        *(models, settings.embedding_model_name, settings.max_encoder_tokens),
        exported=exported_folder(settings.models_path),
    )
    if artefacts.encoder is None:
        raise SettingsError(f"{models}: {'; '.join(artefacts.problems)}")
    return artefacts, artefacts.encoder


def load_encoder(models: Path, settings: Predict) -> Encoder:
    """The encoder of the settings. Raises SettingsError where it is missing."""
    return load_artefacts(models, settings)[1]


def _read(encoder: Encoder, prompts: list[Prompt]) -> list[PromptVector]:
    found = []
    for prompt in prompts:
        started = time.thread_time()
        encoded = encoder.encode(prompt.text, None, prompt.system)
        ms = 1000 * (time.thread_time() - started)
        found.append(PromptVector(encoded.vector, ms, encoded.code))
    return found


def _load(path: Path, name: str) -> dict[bytes, PromptVector]:
    """Vectors stored for this encoder; none where the file is another's or broken."""
    arrays = load_arrays(path, name, ("keys", "vectors", "ms", "codes"))
    return (
        {}
        if arrays is None
        else {
            key.tobytes(): PromptVector(vector, float(took), code if len(code) else None)
            for key, vector, took, code in zip(*arrays, strict=True)
        }
    )


def _save(path: Path, name: str, vectors: Mapping[bytes, PromptVector]) -> None:
    items = vectors.values()
    arrays = {
        "keys": np.array([list(key) for key in vectors], np.uint8),
        "vectors": np.array([item.vector for item in items], np.float32),
        "ms": np.array([item.ms for item in items], np.float32),
        "codes": np.array([_code(item) for item in items], np.float32),
    }
    save_arrays(path, name, arrays)


def _code(item: PromptVector) -> list[float]:
    return [] if item.code is None else [float(value) for value in item.code]
