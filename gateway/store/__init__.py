"""SQLite behind one writer thread: history, submitted jobs, learned state."""

from gateway.store.rows import JobRow, Status
from gateway.store.store import Store, read_history

__all__ = ["JobRow", "Status", "Store", "read_history"]
