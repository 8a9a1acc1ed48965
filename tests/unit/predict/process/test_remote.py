"""The backend in a child process, against the real child."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.predict.lesson import Lesson
from gateway.predict.process.backend import BackendError, BackendGone, Local, Setup
from gateway.predict.process.remote import ENVIRONMENT, Remote
from gateway.predict.process.worker import NICE
from gateway.predict.view import PromptView
from gateway.settings.schema import Predict
from gateway.shipped import own_command, own_environ, shipped
from gateway.types import HistoryRow, Rung

SETUP = Setup(Predict(), str(shipped("models")), b"key", {}, frozenset({"secret"}))
Open = Callable[..., Remote]


def view(text: str = "Write a short poem about the sea", tenant: str = "a") -> PromptView:
    return PromptView.of_prompt(text, tenant=tenant, model="m")


def lesson(tokens: int, text: str = "Write a short poem about the sea") -> Lesson:
    return Lesson(view(text), tokens, 20, False, True, 1.0)


def learned(remote: Remote, taught: Lesson) -> HistoryRow:
    [row] = remote.learn([taught])
    assert isinstance(row, HistoryRow)
    return row


@pytest.fixture
def start() -> Iterator[Open]:
    made: list[Remote] = []

    def build(setup: Setup = SETUP, timeout_s: float = 30.0) -> Remote:
        made.append(Remote(own_command("predictor"), setup, own_environ(), timeout_s))
        return made[-1]

    yield build
    for remote in made:
        remote.close()


def test_remote_says_what_local_says(start: Open) -> None:
    """Every call, through the child or not, comes to the same: forecasts, rows, calibration."""
    remote, local = start(), Local(SETUP)
    for i in range(30):
        taught = lesson(20 * i + 1, f"Write about the number {i % 7}")
        assert remote.draft([taught]) == local.draft([taught])
        assert remote.learn([taught]) == local.learn([taught])
        assert remote.calibration == local.calibration
    assert remote.forecast(view()) == local.forecast(view())
    assert remote.about == local.about
    assert remote.about.rows == 30
    for backend in (remote, local):
        backend.configure(Predict(history_window_size=3), {"secret"})
    assert remote.about.rows == local.about.rows == 3
    for backend in (remote, local):
        backend.forget()
        backend.adopt("")
    assert remote.calibration == local.calibration
    assert remote.forecast(view()) == local.forecast(view())


def test_remote_goes_on_from_history_and_calibration(start: Open) -> None:
    """A second child, given the rows and the dump of a first, forecasts as the first did."""
    first = start()
    rows = [learned(first, lesson(2500)) for _ in range(8)]
    second = start(
        Setup(
            Predict(), SETUP.folder, b"key", {}, frozenset(), calibration=first.calibration.dump()
        )
    )
    assert second.remember(rows) == 0
    assert second.about.restored
    found = second.forecast(view())
    assert found.rung is Rung.TENANT_NEIGHBORS
    assert found.p50 == pytest.approx(first.forecast(view()).p50, rel=0.05)
    assert second.calibration == first.calibration


def test_remote_says_a_calibration_is_not_usable(start: Open) -> None:
    """Garbage in its place begins anew, and is said."""
    garbage = Setup(Predict(), SETUP.folder, b"key", {}, frozenset(), calibration=b"\xff")
    assert not start(garbage).about.restored


def test_remote_passes_over_rows_of_no_use(start: Open) -> None:
    """A row whose vector is damaged costs itself alone."""
    remote = start()
    good = learned(remote, lesson(100))
    bad = HistoryRow(1.0, "a", "m", "", b"k", good.encoder, b"short", 1, 5, 0, False, True)
    assert remote.remember([good, bad, good]) == 0
    assert remote.about.rows == 3


def test_remote_takes_texts_that_are_not_unicode(start: Open) -> None:
    """Lone surrogates in any field."""
    odd = PromptView.of_chat(
        [{"role": "user", "content": "\ud800 sea"}, {"role": "system", "content": "\udfff"}],
        tenant="a",
        model="m",
        tool_names=["\ud800"],
    )
    assert start().forecast(odd).p50 > 0


def test_remote_error_is_told_and_survived(start: Open) -> None:
    """What fails in the child is an error with its place and none of the prompt."""
    remote = start()
    with pytest.raises(BackendError) as told:
        remote.learn([Lesson(view("my secret"), "many", 1, False, True, 1.0)])  # type: ignore[arg-type]
    assert "ValidationError" in str(told.value)
    assert "secret" not in str(told.value)
    assert remote.forecast(view()).p50 > 0


def test_remote_that_is_killed_is_gone(start: Open) -> None:
    """Every call after its end says so."""
    remote = start()
    os.kill(remote.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(BackendGone):
            remote.forecast(view())


def test_remote_that_hangs_is_gone(start: Open) -> None:
    """A child that does not answer in time is given up, and ended."""
    remote = start(timeout_s=0.3)
    assert remote.forecast(view()).p50 > 0
    os.kill(remote.pid, signal.SIGSTOP)
    with pytest.raises(BackendGone, match="no answer in time"):
        remote.forecast(view("another"))
    os.kill(remote.pid, signal.SIGCONT)
    with pytest.raises(BackendGone, match="given up"):  # its late answer is nobody's
        remote.forecast(view("a third"))
    remote.close()
    with pytest.raises(ProcessLookupError):
        os.kill(remote.pid, 0)


def test_remote_ignores_the_terminals_signals(start: Open) -> None:
    """Ctrl-C and a service manager's SIGTERM reach the whole group: draining is the gateway's."""
    remote = start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(remote.pid, number)
        assert remote.forecast(view()).p50 > 0


def test_remote_child_is_nice_and_sees_no_keys() -> None:
    """Lower priority, first to go where memory runs out, none of the gateway's secrets."""
    environ = {**own_environ(), "SAGESCHED_ADMIN_TOKEN": "hidden", "OPENAI_API_KEY": "hidden"}
    remote = Remote(own_command("predictor"), SETUP, environ)
    try:
        remote.forecast(view())  # it opens at full speed, and gives way when it works
        assert os.getpriority(os.PRIO_PROCESS, remote.pid) == NICE > 0
        proc = Path(f"/proc/{remote.pid}")
        assert proc.joinpath("oom_score_adj").read_text().strip() == "500"
        seen = proc.joinpath("environ").read_bytes().split(b"\0")
        assert {line.split(b"=")[0].decode() for line in seen if line} <= ENVIRONMENT
    finally:
        remote.close()


def test_remote_child_computes_with_the_same_kernels() -> None:
    """The BLAS kernels and threads chosen for the gateway are the child's, too: other kernels
    round sums differently, and a processor may need the choice."""
    chosen = {"OPENBLAS_CORETYPE": "Prescott", "OMP_NUM_THREADS": "1"}
    remote = Remote(own_command("predictor"), SETUP, {**own_environ(), **chosen})
    try:
        seen = Path(f"/proc/{remote.pid}/environ").read_bytes().decode().split("\0")
        assert {f"{name}={value}" for name, value in chosen.items()} <= set(seen)
    finally:
        remote.close()


def test_remote_command_that_does_not_start_is_gone() -> None:
    """A missing program, or one that ends at once, is no different from a dead child."""
    for command in (["/nonexistent/program"], ["true"]):
        with pytest.raises(BackendGone):
            Remote(command, SETUP)
