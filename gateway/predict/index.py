"""The window of finished requests, searchable by similarity.

One FAISS flat index (inner product of unit vectors, so cosine) holds every pool: a pool is the
index seen through a bitmap of its rows, so a row is stored once and leaves all pools together. A
freed place is overwritten in the index's own memory; removing and adding would move the whole
block each time (1 ms for one row of 10,000).

When the window is full, the tenant with the most rows (the newcomer counted) gives up its oldest
one. First in, first out would let one tenant's burst erase all others; with this rule a tenant
below an equal share loses nothing, and with one tenant it is the same. `pick_victim` is
O(log tenants) by a heap whose stale entries are dropped when met.

One search answers for both pools: the tenant may see the shared rows and its own
(`share_history = false` keeps a tenant's rows its own). The nearest 2·k of them hold every row of
the tenant that can matter, unless fewer than k of them are its own and the last one is still
above the threshold: only then is the tenant searched alone.

FAISS keeps a thread pool per calling thread, so it is set to use one thread (0.3 ms for 10,000
rows of 384). Similarities are on one scale for all encoders (encoder.py).
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
    """Rows of one pool near a prompt, the nearest first. Lengths are log1p(output tokens)."""

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
        private: tenants whose rows no other tenant may see.
        scale: of the encoder's similarities (`Encoder.similarity_scale`).
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
        self._rows = 0  # ever added: its number orders a row among all
        self._newest_s = 0.0
        self._length = np.zeros(window, np.float32)
        self._censored = np.zeros(window, bool)
        self._model = np.zeros(window, np.uint32)
        self._number = np.zeros(window, np.int64)
        self._wall_s = np.zeros(window, np.float64)
        self._shared = np.zeros(window, bool)  # by the setting when the row was learned
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

    def __repr__(self) -> str:
        return f"<HistoryIndex {self._size} of {self.window} rows, {len(self._tenants)} tenants>"

    def tenant_rows(self, tenant: str) -> int:
        """Number of the tenant's rows in the window."""
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
        """Put a row in; when the window is full another one leaves (see the head of the file)."""
        length = log1p(max(output_tokens, 0))
        self._put(vector, tenant, (length, censored, _number(model), wall_s, shared))

    def pick_victim(self, newcomer: str) -> str:
        """The tenant that gives up its oldest row for a row of `newcomer`."""
        heap, own = self._heap, self.tenant_rows(newcomer)
        while -heap[0][0] != self.tenant_rows(heap[0][1]):
            heappop(heap)
        return newcomer if own + 1 > -heap[0][0] else heap[0][1]

    def set_private(self, private: Collection[str]) -> None:
        """Take another set of tenants whose rows no other tenant may see."""
        if self._private != frozenset(private):
            self._private = frozenset(private)
            self._hidden = 0
            self._shared_bits[:] = 0
            for tenant, places in self._tenants.items():
                for at in places:
                    self._show(at, tenant)

    def resized(self, window: int) -> HistoryIndex:
        """A copy in another window; a smaller one keeps the newest rows of each tenant."""
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
        """The k nearest rows of the tenant, and of all it may see, its own among them.

        Own rows at or below `threshold` may be left out: the caller gives them no weight.
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
        exact = ~self._censored[at][order]
        recency = np.empty(len(at), np.int64)
        recency[order] = np.cumsum(exact) - exact
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
        limits.alive = (selector, bits)  # FAISS holds bare pointers to both
        return limits

    def _own_hidden(self, tenant: str) -> int:
        """Number of the tenant's rows that others may not see."""
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
        """Remove the tenant's oldest row; the freed place."""
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
        """Enter a row into the shared pool, or hide it."""
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
        """The index's own rows as an array that writes through.

        Fetched anew each time, because the block moves when a row is appended.
        """
        size = self._size * self.width
        block: Floats = self._faiss.rev_swig_ptr(self._index.get_xb(), size)
        return block.reshape(self._size, self.width)


def _number(model: str) -> int:
    """A hash of a model's name: names come from clients, so no table of them is kept."""
    return crc32(model.encode("utf-8", "replace"))
