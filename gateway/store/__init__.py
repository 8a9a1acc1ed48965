"""SQLite behind one writer thread: history, submitted jobs, learned state."""

from gateway.store.rows import JobRow, Status
from gateway.store.store import Store

__all__ = ["JobRow", "Status", "Store"]
