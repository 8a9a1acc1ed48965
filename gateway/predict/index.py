"""The window of finished requests, searchable by similarity.

One FAISS flat index (inner product of unit vectors, so cosine) holds every pool: a pool is
the index seen through a bitmap of its rows, so a row is stored once and leaves all pools
together. A place that is given up is overwritten in the index's own memory, where removing
and adding again would move the whole block each time (1 ms for one row of 10,000).

Whose row goes when the window is full. Plain FIFO lets one tenant's burst erase all the
others. Instead the oldest row of the tenant most over an equal share goes: the one with the
most rows, the newcomer counted. A tenant below its share loses nothing; with one tenant it
is FIFO. `pick_victim` is O(log tenants) by a heap whose stale entries are dropped on sight.

One search answers for both pools. What a tenant may see is the shared rows and its own
(`share_history = false` keeps a tenant's rows its own), one selector. The nearest 2·k of
them hold every row of the tenant that can matter, unless its own rows are fewer than k
among them and the last one is still above the threshold: only then is the tenant searched
alone.

Owned by the predictor's process. FAISS keeps a thread pool per calling thread, so it is told
to use one thread by the thread that searches (0.3 ms for 10,000 rows of 384).

Similarities are told on one scale for all encoders (encoder.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from heapq import heappop, heappush
from math import log1p
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gateway.predict.encoder import Vector

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


class Neighbours(Struct, frozen=True):
    """Rows of one pool near a prompt, nearest first. Lengths are log1p(output tokens)."""

    similarity: Floats
    length: Floats
    censored: Flags  # the true length is longer
    same_model: Flags
    age_s: Doubles  # before the newest row of the window
    recency: Places  # how many of these rows are newer, censored ones not counted

    def __len__(self) -> int:
        return len(self.similarity)


NO_NEIGHBOURS = Neighbours(
    *(np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, bool), np.empty(0, bool)),
    *(np.empty(0, np.float64), np.empty(0, np.int64)),
)


class HistoryIndex:
    """A bounded window with a pool per tenant and one of all that is shared.

    Args:
        width: length of a vector.
        window: most rows held.
        private: tenants whose rows nobody else may see.
        scale: of the encoder's similarities (encoder.py).
    """

    def __init__(
        self, width: int, window: int, private: Collection[str] = (), scale: float = 1.0
    ) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self._faiss: Any = faiss
        self._index: Any = faiss.IndexFlatIP(width)
        self.width, self.window, self._scale = width, window, scale
        self._private = frozenset(private)
        self._size = 0
        self._rows = 0  # ever added: a row's number orders it among all
        self._newest_s = 0.0
        self._length = np.zeros(window, np.float32)
        self._censored = np.zeros(window, bool)
        self._model = np.zeros(window, np.uint32)
        self._number = np.zeros(window, np.int64)
        self._wall_s = np.zeros(window, np.float64)
        self._shared = np.zeros(window, bool)  # as it was learned
        self._columns: tuple[npt.NDArray[Any], ...] = (
            *(self._length, self._censored, self._model, self._wall_s, self._shared),
        )
        self._tenants: dict[str, deque[int]] = {}  # places, oldest row first
        self._heap: list[tuple[int, str]] = []  # (-rows, tenant), the stale among them
        self._hidden = 0  # rows that are not in the shared pool
        self._shared_bits = np.zeros((window + 7) // 8, np.uint8)
        self._own_bits: dict[str, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return self._size

    def tenant_rows(self, tenant: str) -> int:
        """Rows of one tenant within the window."""
        return len(self._tenants.get(tenant, ()))

    def add(
        self,
        vector: Vector,
        tenant: str,
        model: str,
        output_tokens: int,
        *,
        censored: bool,
        wall_s: float = 0.0,
        shared: bool = True,
    ) -> None:
        """Put a row in; when the window is full another leaves (see the head of the file)."""
        length = log1p(max(output_tokens, 0))
        self._put(vector, tenant, (length, censored, _number(model), wall_s, shared))

    def pick_victim(self, newcomer: str) -> str:
        """The tenant that gives up its oldest row for a row of `newcomer`."""
        heap, own = self._heap, self.tenant_rows(newcomer)
        while -heap[0][0] != self.tenant_rows(heap[0][1]):
            heappop(heap)
        return newcomer if own + 1 > -heap[0][0] else heap[0][1]

    def set_private(self, private: Collection[str]) -> None:
        """Other tenants keep their rows to themselves from now on."""
        if self._private != frozenset(private):
            self._private = frozenset(private)
            self._hidden = 0
            self._shared_bits[:] = 0
            for tenant, places in self._tenants.items():
                for at in places:
                    self._show(at, tenant)

    def resized(self, window: int) -> HistoryIndex:
        """The rows in a window of another size, the newest of each tenant where it is smaller."""
        new = HistoryIndex(self.width, window, self._private, self._scale)
        vectors = self._memory() if self._size else None
        owner = {at: tenant for tenant, places in self._tenants.items() for at in places}
        for at in np.argsort(self._number[: self._size]).tolist():
            assert vectors is not None
            new._put(vectors[at], owner[at], tuple(column[at] for column in self._columns))
        return new

    def near(
        self, vector: Vector, tenant: str, model: str, k: int, threshold: float = 1.0
    ) -> tuple[Neighbours, Neighbours]:
        """The nearest rows of the tenant, and of all it may see (its own among them).

        Each exact for k rows, but that own rows at or below `threshold` may be left out:
        the caller gives them no weight.
        """
        own = self.tenant_rows(tenant)
        visible = self._size - self._hidden + self._own_hidden(tenant)
        if visible < 1:
            return NO_NEIGHBOURS, NO_NEIGHBOURS
        query = np.ascontiguousarray(vector, np.float32).reshape(1, -1)
        wanted = k if own in (0, visible) else 2 * k
        limits = self._selector(tenant) if visible < self._size else None
        similarity, at = self._search(query, min(wanted, visible), limits)
        everyone = self._rows_at(similarity[:k], at[:k], model)
        if own == 0:
            return NO_NEIGHBOURS, everyone
        if own == visible:
            return everyone, everyone
        mine = (self._own_bits[tenant][at >> 3] >> (at & 7).astype(np.uint8)) & 1 == 1
        enough = int(mine.sum()) >= min(k, own)
        if not enough and len(at) == wanted < visible and similarity[-1] > threshold:
            limits = self._selector(tenant, shared=False)
            similarity, at = self._search(query, min(k, own), limits)
            return self._rows_at(similarity, at, model), everyone
        return self._rows_at(similarity[mine][:k], at[mine][:k], model), everyone

    # --- inside -------------------------------------------------------------------------

    def _search(self, query: Floats, k: int, limits: Any) -> tuple[Floats, Places]:
        similarity, rows = self._index.search(query, k, params=limits)
        found = rows[0] >= 0
        near = similarity[0][found]
        if self._scale != 1.0:
            near = 1.0 - self._scale * (1.0 - near)
        return near, rows[0][found]

    def _rows_at(self, similarity: Floats, at: Places, model: str) -> Neighbours:
        order = np.argsort(-self._number[at])
        known = ~self._censored[at][order]
        recency = np.empty(len(at), np.int64)
        recency[order] = np.cumsum(known) - known
        return Neighbours(
            similarity=similarity,
            length=self._length[at],
            censored=self._censored[at],
            same_model=self._model[at] == _number(model),
            age_s=self._newest_s - self._wall_s[at],
            recency=recency,
        )

    def _selector(self, tenant: str, *, shared: bool = True) -> Any:
        bits = self._own_bits.get(tenant)
        if bits is None:
            bits = self._shared_bits
        elif shared:
            bits = bits | self._shared_bits
        selector = self._faiss.IDSelectorBitmap(len(bits), self._faiss.swig_ptr(bits))
        limits = self._faiss.SearchParameters(sel=selector)
        limits.kept = (selector, bits)  # FAISS holds bare pointers to both
        return limits

    def _own_hidden(self, tenant: str) -> int:
        """Rows of the tenant that others may not see."""
        bits = self._own_bits.get(tenant)
        if bits is None or self._hidden == 0:
            return 0
        return int(np.unpackbits(bits & ~self._shared_bits).sum())

    def _put(self, vector: Vector, tenant: str, values: tuple[Any, ...]) -> None:
        if self._size < self.window:
            at = self._size
            self._index.add(np.ascontiguousarray(vector, np.float32).reshape(1, -1))
            self._size += 1
        else:
            at = self._leave(self.pick_victim(tenant))
            self._memory()[at] = vector
        for column, value in zip(self._columns, values, strict=True):
            column[at] = value
        self._number[at] = self._rows
        self._rows += 1
        self._newest_s = max(self._newest_s, float(self._wall_s[at]))
        self._enter(at, tenant)

    def _enter(self, at: int, tenant: str) -> None:
        places = self._tenants.get(tenant)
        if places is None:
            places = self._tenants[tenant] = deque()
            self._own_bits[tenant] = np.zeros_like(self._shared_bits)
        places.append(at)
        self._own_bits[tenant][at >> 3] |= 1 << (at & 7)
        self._show(at, tenant)
        self._weigh(tenant)

    def _leave(self, tenant: str) -> int:
        """Give up the tenant's oldest row; its place."""
        places = self._tenants[tenant]
        at = places.popleft()
        byte, others = at >> 3, 0xFF ^ (1 << (at & 7))
        self._own_bits[tenant][byte] &= others
        self._hidden -= not (self._shared_bits[byte] >> (at & 7)) & 1
        self._shared_bits[byte] &= others
        if places:
            self._weigh(tenant)
        else:
            del self._tenants[tenant], self._own_bits[tenant]
        return at

    def _show(self, at: int, tenant: str) -> None:
        """Put a row that was just entered into the shared pool, or not."""
        byte, bit = at >> 3, 1 << (at & 7)
        if self._shared[at] and tenant not in self._private:
            self._shared_bits[byte] |= bit
        else:
            self._shared_bits[byte] &= 0xFF ^ bit
            self._hidden += 1

    def _weigh(self, tenant: str) -> None:
        heappush(self._heap, (-len(self._tenants[tenant]), tenant))
        if len(self._heap) > 4 * len(self._tenants) + 64:
            self._heap = sorted((-len(places), name) for name, places in self._tenants.items())

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
