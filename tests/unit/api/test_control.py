"""`/ingest` keeps a row for who waits for it, and for nobody else."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue

from gateway.api.control import _Asker
from gateway.settings.schema import Store as StoreSettings
from gateway.store.store import Store
from gateway.types import HistoryRow

ROW = HistoryRow(
    wall_s=1.0, tenant="t", model="m", task_type="", prompt_key=b"k" * 16, encoder="e",
    vector=b"", prompt_tokens=1, output_tokens=2, max_tokens=0, censored=False, success=True,
)  # fmt: skip


def test_asker_who_was_told_no_gets_no_row(tmp_path: Path) -> None:
    """While he waits the row is stored; after his 503 it is not, or his retry would make two."""
    store = Store(tmp_path / "s.db", StoreSettings())
    store.start()
    told: SimpleQueue[Exception | None] = SimpleQueue()
    asker = _Asker(store)
    assert asker.keep(ROW, told.put)
    assert told.get(timeout=10) is None
    asker.waits = False
    assert not asker.keep(ROW, told.put)
    assert len(store.load_history(10)) == 1
    assert store.stop()
