"""The window of finished requests, searchable by similarity.

One FAISS flat index (inner product of unit vectors, so cosine) holds the last `window`
rows. It is a ring: when it is full the next row overwrites the oldest in place, in the
index's own memory, where removing and adding again would move the whole block each time
(1 ms for one row of 10,000). A tenant's pool is the same index seen through a bitmap of
its rows, so a row is stored once and leaves both pools together.

Owned by the predictor thread. FAISS keeps a thread pool per calling thread, so it is told
to use one thread by the thread that searches (0.3 ms for 10,000 rows of 384).
"""

from __future__ import annotations

from math import log1p
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gateway.predict.encoder import Vector

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


class Neighbours(Struct, frozen=True):
    """Rows of one pool near a prompt, nearest first. Lengths are log1p(output tokens)."""

    similarity: Floats
    length: Floats
    censored: Flags  # the true length is longer
    same_model: Flags

    def __len__(self) -> int:
        return len(self.similarity)


NO_NEIGHBOURS = Neighbours(
    np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, bool), np.empty(0, bool)
)


class HistoryIndex:
    """FIFO window with a global pool and one pool per tenant.

    Args:
        width: length of a vector.
        window: most rows held.
    """

    def __init__(self, width: int, window: int) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self._faiss: Any = faiss
        self._index: Any = faiss.IndexFlatIP(width)
        self.width, self.window = width, window
        self._next = 0  # ring position of the next row
        self._size = 0
        self._length = np.zeros(window, np.float32)
        self._censored = np.zeros(window, bool)
        self._model = np.zeros(window, np.uint32)
        self._tenant: list[str | None] = [None] * window
        self._pools: dict[str, npt.NDArray[np.uint8]] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return self._size

    def tenant_rows(self, tenant: str) -> int:
        """Rows of one tenant within the window."""
        return self._counts.get(tenant, 0)

    def add(
        self, vector: Vector, tenant: str, model: str, output_tokens: int, *, censored: bool
    ) -> None:
        """Put a row in; the oldest leaves when the window is full."""
        at = self._next
        if at < self._size:
            self._forget(at)
            self._memory()[at] = vector
        else:
            self._index.add(np.ascontiguousarray(vector, np.float32).reshape(1, -1))
            self._size += 1
        self._length[at] = log1p(max(output_tokens, 0))
        self._censored[at] = censored
        self._model[at] = _number(model)
        self._enter(at, tenant)
        self._next = (at + 1) % self.window

    def resized(self, window: int) -> HistoryIndex:
        """The newest rows in a window of another size."""
        new = HistoryIndex(self.width, window)
        full = self._size == self.window
        order = np.arange(self._size) + (self._next if full else 0)
        order = (order % max(self._size, 1))[-window:]
        if not len(order):
            return new
        new._index.add(np.ascontiguousarray(self._memory()[order]))
        new._size = len(order)
        new._next = new._size % window
        for mine, theirs in (
            (new._length, self._length),
            (new._censored, self._censored),
            (new._model, self._model),
        ):
            mine[: new._size] = theirs[order]
        for at, source in enumerate(order.tolist()):
            tenant = self._tenant[source]
            assert tenant is not None
            new._enter(at, tenant)
        return new

    def tenant_neighbours(self, vector: Vector, tenant: str, model: str, k: int) -> Neighbours:
        """The nearest rows of one tenant."""
        pool = self._pools.get(tenant)
        if pool is None:
            return NO_NEIGHBOURS
        if self._counts[tenant] == self._size:
            return self.global_neighbours(vector, model, k)
        selector = self._faiss.IDSelectorBitmap(len(pool), self._faiss.swig_ptr(pool))
        limits = self._faiss.SearchParameters(sel=selector)
        return self._search(vector, model, min(k, self._counts[tenant]), limits)

    def global_neighbours(self, vector: Vector, model: str, k: int) -> Neighbours:
        """The nearest rows of all tenants."""
        return self._search(vector, model, min(k, self._size), None)

    def _search(self, vector: Vector, model: str, k: int, limits: Any) -> Neighbours:
        if k < 1:
            return NO_NEIGHBOURS
        query = np.ascontiguousarray(vector, np.float32).reshape(1, -1)
        similarity, rows = self._index.search(query, k, params=limits)
        found = rows[0] >= 0  # fewer than k rows passed the selector
        at = rows[0][found]
        return Neighbours(
            similarity=similarity[0][found],
            length=self._length[at],
            censored=self._censored[at],
            same_model=self._model[at] == _number(model),
        )

    def _enter(self, at: int, tenant: str) -> None:
        self._tenant[at] = tenant
        pool = self._pools.get(tenant)
        if pool is None:
            pool = self._pools[tenant] = np.zeros((self.window + 7) // 8, np.uint8)
        pool[at >> 3] |= 1 << (at & 7)
        self._counts[tenant] = self._counts.get(tenant, 0) + 1

    def _forget(self, at: int) -> None:
        tenant = self._tenant[at]
        assert tenant is not None
        self._pools[tenant][at >> 3] &= 0xFF ^ (1 << (at & 7))
        self._counts[tenant] -= 1
        if self._counts[tenant] == 0:
            del self._pools[tenant], self._counts[tenant]

    def _memory(self) -> Floats:
        """The index's own rows, as an array that writes through.

        Fetched anew each time: the block moves whenever a row is appended.
        """
        size = self._size * self.width
        block: Floats = self._faiss.rev_swig_ptr(self._index.get_xb(), size)
        return block.reshape(self._size, self.width)


def _number(model: str) -> int:
    """A model's name in four bytes: names come from clients, so no table of them is kept."""
    return crc32(model.encode("utf-8", "replace"))
