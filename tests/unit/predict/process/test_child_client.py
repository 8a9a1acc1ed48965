"""The client of the child process, against the real child and against scripted ones."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest
from msgspec import structs

from gateway.predict.calibrate import Mirror
from gateway.predict.lesson import Lesson
from gateway.predict.process.background_learning import ROOM
from gateway.predict.process.child_client import ENVIRONMENT, ChildClient, ChildLink, start_child
from gateway.predict.process.priority import IDLE, NICE
from gateway.predict.process.wire import (
    ChangeSettings,
    ChildAnswer,
    ChildGone,
    ChildSetup,
    FillIndex,
    FinishLessons,
    ForgetLearned,
    MakeForecasts,
    OpenModels,
    Question,
    StoreLessons,
    TakeLessons,
    UseVersion,
)
from gateway.settings.schema import Predict
from gateway.settings.schema import Store as StoreSettings
from gateway.shipped import own_command, own_environ, shipped
from gateway.store.store import Store
from gateway.types import Rung, Workload
from tests.unit.predict.process.inline_child import InlineChild, lesson, view

pytestmark = pytest.mark.anyio
SETUP = ChildSetup(Predict(), str(shipped("models")), b"key", {}, frozenset({"secret"}))
LAST_WORDS_S = 0.3  # of a child that does not end by itself: a tenth of what the product grants
Start = Callable[..., Awaitable[ChildClient]]


@pytest.fixture
async def start(anyio_backend: str) -> AsyncIterator[Start]:
    """Starts children of a command, by default real ones, and ends them after the test."""
    made: list[ChildClient] = []

    async def build(
        command: list[str] | None = None, environ: Mapping[str, str] | None = None
    ) -> ChildClient:
        command, environ = command or own_command("predictor"), environ or own_environ()
        client = await start_child(command, environ, LAST_WORDS_S)
        made.append(client)
        return client

    yield build
    for client in made:
        await client.close()


async def ask(client: ChildClient, question: Question, timeout_s: float = 30.0) -> ChildAnswer:
    return await client.ask(question, timeout_s)


async def opened(start: Start, setup: ChildSetup = SETUP) -> ChildClient:
    client = await start()
    await ask(client, OpenModels(setup), 120.0)
    return client


def scripted(body: str) -> list[str]:
    """A child that runs this, with `read()` of one question and `write(bytes)`."""
    return [
        sys.executable,
        "-c",
        "import os, time\n"
        "def read():\n"
        "    size = int.from_bytes(os.read(0, 4), 'big')\n"
        "    while size: size -= len(os.read(0, size))\n"
        "def write(data): os.write(1, data)\n" + body,
    ]


async def taught(link: ChildLink, lessons: list[Lesson]) -> list[ChildAnswer]:
    """Have lessons learned; the answers."""
    return [
        await link.ask(TakeLessons(lessons, 1.0), 30.0),
        await link.ask(FinishLessons(), 30.0),
    ]


async def test_child_answers_as_its_models_do_here(start: Start) -> None:
    """The child's forecasts, reports and calibration equal those of the same models in the test."""
    children = await start(), InlineChild()
    mirrors = [Mirror(), Mirror()]

    def of_both(answers: list[ChildAnswer]) -> ChildAnswer:
        for answer, mirror in zip(answers, mirrors, strict=True):
            assert answer.error is None
            if answer.changes is not None:
                mirror.apply(answer.changes)
        one, other = (
            structs.replace(
                answer,
                changes=None,
                status=structs.replace(answer.status, cpu_s=0.0, priority=""),
            )
            for answer in answers
        )
        assert one == other
        return one

    async def both(question: Question) -> ChildAnswer:
        return of_both([await child.ask(question, 120.0) for child in children])

    await both(OpenModels(SETUP))
    for i in range(30):
        lessons = [lesson(20 * i + 1, f"Write about the number {i % 7}", prompt_tokens=20)]
        for child, mirror in zip(children, mirrors, strict=True):
            for answer in await taught(child, lessons):
                if answer.changes is not None:
                    mirror.apply(answer.changes)
        assert mirrors[0].table == mirrors[1].table
    await both(MakeForecasts([view(), view("another")]))
    assert (await both(FillIndex([]))).status.rows == 30
    answer = await both(ChangeSettings(Predict(history_window_size=3), frozenset({"secret"})))
    assert answer.status.rows == 3
    await both(ForgetLearned())
    await both(UseVersion(""))
    await both(MakeForecasts([view()]))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store that is open, with nothing in it."""
    store = Store(tmp_path / "a.db", StoreSettings())
    store.start()
    yield store
    assert store.stop(10.0)


async def test_second_child_goes_on_from_history_and_calibration(
    start: Start, store: Store
) -> None:
    """A child given a first one's stored rows and calibration forecasts as the first did."""
    first, mirror = await start(), Mirror()
    setup = structs.replace(SETUP, private=frozenset(), store=str(store.path))
    opened = await ask(first, OpenModels(setup))
    for answer in [opened, *await taught(first, [lesson(2500)] * 8)]:
        if answer.changes is not None:
            mirror.apply(answer.changes)
    rows = [row for page in store.history_pages(100) for row in page]
    assert len(rows) == 8
    kept = mirror.table.dump()
    second = await start()
    answer = await ask(second, OpenModels(structs.replace(setup, calibration=kept)))
    assert answer.status.restored
    assert answer.changes is not None
    assert answer.changes.models == dict(mirror.table.models)
    assert (await ask(second, FillIndex(rows))).bad == 0
    [before] = (await ask(first, MakeForecasts([view()]))).workloads
    [after] = (await ask(second, MakeForecasts([view()]))).workloads
    assert isinstance(before, Workload)
    assert isinstance(after, Workload)
    assert after.rung is Rung.TENANT_NEIGHBORS
    assert after.p50 == pytest.approx(before.p50, rel=0.05)


async def test_child_learns_between_questions(start: Start) -> None:
    """Lessons are answered at once, and learned while nobody asks; a later report counts them."""
    client = await opened(start)
    answer = await ask(client, TakeLessons([lesson(9, f"number {i}") for i in range(20)], 1.0))
    assert answer.report is not None
    assert (answer.report.learned, answer.report.waiting, answer.report.owing) == (0, 20, True)
    learned = 0
    async with asyncio.timeout(30):
        while learned < 20:
            await asyncio.sleep(0.02)
            report = (await ask(client, TakeLessons([], 1.0))).report
            assert report is not None
            learned += report.learned


async def test_forecast_passes_lessons_that_wait(start: Start) -> None:
    """A forecast asked for behind many lessons waits for one of them at most."""
    client = await opened(start)
    await ask(client, TakeLessons([lesson(9, f"number {i}") for i in range(ROOM)], 1.0))
    [workload] = (await ask(client, MakeForecasts([view()]))).workloads
    assert isinstance(workload, Workload)
    report = (await ask(client, TakeLessons([], 1.0))).report
    assert report is not None
    assert report.waiting > ROOM // 2


async def test_child_stores_what_it_was_promised_to(start: Start, store: Store) -> None:
    """A row is in the store when it is reported, at once or after a slow commit; a draft that fails
    is told from it."""
    client = await opened(start, structs.replace(SETUP, store=str(store.path)))
    promised = {7: lesson(2500), 8: lesson(-5, censored=True)}
    report = (await ask(client, StoreLessons(promised))).report
    assert report is not None
    assert list(report.drafts_failed) == [8]
    async with asyncio.timeout(30):
        while not report.stored:
            report = (await ask(client, TakeLessons([], 1.0))).report
            assert report is not None
    assert report.stored == {7: ""}
    assert [row.output_tokens for page in store.history_pages(9) for row in page] == [2500]


async def test_child_stores_what_it_learned_at_its_end(start: Start, store: Store) -> None:
    """A child whose input ends commits the rows it has before it ends."""
    client = await opened(start, structs.replace(SETUP, store=str(store.path)))
    await ask(client, TakeLessons([lesson(2500)], 1.0))
    async with asyncio.timeout(30):
        while (await ask(client, ChangeSettings(Predict(), frozenset()))).status.rows == 0:
            pass
    await client.close()
    assert [row.output_tokens for page in store.history_pages(9) for row in page] == [2500]


async def test_child_without_its_store_says_so(start: Start, tmp_path: Path) -> None:
    """A missing file stops neither forecasts nor lessons, and nothing is promised."""
    client = await start()
    setup = structs.replace(SETUP, store=str(tmp_path / "none.db"))
    answer = await ask(client, OpenModels(setup), 120.0)
    assert any("no history is stored" in problem for problem in answer.status.problems)
    report = (await ask(client, StoreLessons({1: lesson(5)}))).report
    assert report is not None
    assert "cannot be" in report.stored[1]
    assert (await taught(client, [lesson(5)]))[1].status.rows == 1


async def test_end_of_a_child_is_told_at_once(start: Start) -> None:
    """An idle child's death is reported although nobody asks anything."""
    client, told = await opened(start), asyncio.Event()
    client.watch(lambda why: told.set())
    os.kill(client.pid, signal.SIGKILL)
    await asyncio.wait_for(told.wait(), 10)


async def test_child_survives_a_question_that_fails(start: Start) -> None:
    """A failed question is answered with an error that shows its place and no prompt; the next one
    is answered."""
    client = await opened(start)
    broken = lesson("many", "my secret")  # type: ignore[arg-type]
    answer = await ask(client, TakeLessons([broken], 1.0))
    assert answer.error is not None
    assert "ValidationError" in answer.error
    assert "secret" not in answer.error
    assert (await ask(client, MakeForecasts([view()]))).workloads


async def test_child_that_is_killed_is_gone(start: Start) -> None:
    """Every question after the child's end raises ChildGone."""
    client = await opened(start)
    os.kill(client.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(ChildGone):
            await ask(client, MakeForecasts([view()]))


async def test_child_that_hangs_is_given_up_and_ended(start: Start) -> None:
    """No question is asked after one without an answer, whose late answer would be taken for the
    next one's."""
    client = await opened(start)
    os.kill(client.pid, signal.SIGSTOP)
    with pytest.raises(ChildGone, match="no answer in time"):
        await ask(client, MakeForecasts([view("another")]), 0.2)
    os.kill(client.pid, signal.SIGCONT)
    with pytest.raises(ChildGone, match="no answer in time"):
        await ask(client, MakeForecasts([view("a third")]))
    await client.close()
    with pytest.raises(ProcessLookupError):
        os.kill(client.pid, 0)


BUSY = "import os; os.sched_setaffinity(0, {int(os.environ['CORE'])})\nwhile True: pass"
STARVED = """
read()
write(b'\\x00\\x00\\x00\\x01\\x80')
os.sched_setaffinity(0, {int(os.environ['TMPDIR'])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
read()
until = time.process_time() + 0.05
while time.process_time() < until: pass
write(b'\\x00\\x00\\x00\\x01\\x80')
time.sleep(600)
"""
HUNG = """
os.sched_setaffinity(0, {int(os.environ['TMPDIR'])})
os.nice(5)
read()
while True: pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the idle class is Linux's")
async def test_child_that_does_not_get_the_processor_is_not_given_up(start: Start) -> None:
    """A child whose core others keep busy for longer than the question may take answers once they
    let it."""
    core = str(min(os.sched_getaffinity(0)))
    busy = await asyncio.create_subprocess_exec(sys.executable, "-c", BUSY, env={"CORE": core})
    try:
        client = await start(scripted(STARVED), {**own_environ(), "TMPDIR": core})
        await ask(client, ForgetLearned())  # it has started, at its normal priority
        asking = asyncio.create_task(ask(client, ForgetLearned(), 0.4))
        done, _ = await asyncio.wait({asking}, timeout=1.5)
    finally:
        busy.kill()
        await busy.wait()
    assert done == set()
    assert await asking == ChildAnswer()


async def test_child_is_not_given_up_for_a_stop_of_its_gateway(start: Start) -> None:
    """A time limit that passes while the loop itself is held up says nothing about the child."""
    client = await opened(start)
    asking = asyncio.create_task(ask(client, MakeForecasts([view()]), 0.2))
    await asyncio.sleep(0)
    time.sleep(1.5)  # noqa: ASYNC251 - as a process that is stopped
    assert (await asking).workloads


@pytest.mark.skipif(sys.platform != "linux", reason="the time of a process is read from /proc")
async def test_child_that_hangs_beside_a_busy_neighbour_is_given_up(start: Start) -> None:
    """One that computes without end and gets a share of a core is given up once it has had half of
    its time limit on the processor, however long that takes."""
    core = str(min(os.sched_getaffinity(0)))
    busy = await asyncio.create_subprocess_exec(sys.executable, "-c", BUSY, env={"CORE": core})
    try:
        client = await start(scripted(HUNG), {**own_environ(), "TMPDIR": core})
        async with asyncio.timeout(20):
            with pytest.raises(ChildGone, match="no answer in time"):
                await ask(client, ForgetLearned(), 0.4)
    finally:
        busy.kill()
        await busy.wait()


async def test_child_that_ignores_its_end_is_killed(start: Start) -> None:
    """Closing waits for LAST_WORDS_S and then kills the child; the loop goes on meanwhile."""
    client = await start(scripted("time.sleep(600)"))
    turns = 0
    closing = asyncio.create_task(client.close())
    while not closing.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 5
    with pytest.raises(ProcessLookupError):
        os.kill(client.pid, 0)


async def test_question_given_up_by_its_caller_ends_the_conversation(start: Start) -> None:
    """A cancelled caller's child is given up, since the answer still to come would be taken for
    another question's."""
    client = await start(scripted("read(); time.sleep(600)"))
    waiting = asyncio.create_task(ask(client, ForgetLearned()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(ChildGone, match="given up"):
        await ask(client, ForgetLearned())


async def test_child_that_does_not_read_holds_up_nothing(start: Start) -> None:
    """A question larger than the socket's buffer waits for the child to read; the loop goes on
    meanwhile."""
    client = await start(scripted("time.sleep(600)"))
    question = MakeForecasts([view("x" * 10_000_000)])
    turns, asking = 0, asyncio.create_task(ask(client, question, 0.5))
    while not asking.done():
        await asyncio.sleep(0.01)
        turns += 1
    with pytest.raises(ChildGone, match="no answer in time"):
        await asking
    assert turns > 5


async def test_answer_may_come_in_any_pieces(start: Start) -> None:
    """An answer is read byte by byte, and two megabytes at once."""
    client = await start(
        scripted(
            "import msgspec\n"
            "read()\n"
            "for byte in b'\\x00\\x00\\x00\\x01\\x80': write(bytes([byte]))\n"
            "read()\n"
            "answer = msgspec.msgpack.encode({'error': 'x' * 2_000_000})\n"
            "data = len(answer).to_bytes(4, 'big') + answer\n"
            "while data: data = data[os.write(1, data):]\n"
            "time.sleep(600)"
        )
    )
    assert await ask(client, ForgetLearned()) == ChildAnswer()
    answer = await ask(client, ForgetLearned())
    assert answer.error == "x" * 2_000_000


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("read(); write(b'\\x00\\x00\\x00\\x09half')", "it has ended"),
        ("read(); write(b'\\x00\\x00\\x00\\x01\\xc1'); time.sleep(600)", "no answer"),
        ("read(); write(b'\\xff\\xff\\xff\\xff'); time.sleep(600)", "no frame"),
        ("pass", "it has"),
    ],
)
async def test_child_that_breaks_the_protocol_is_gone(start: Start, body: str, why: str) -> None:
    """A cut answer, garbage, an absurd length, or an end before any question raises ChildGone."""
    client = await start(scripted(body))
    with pytest.raises(ChildGone, match=why):
        await ask(client, ForgetLearned())


async def test_child_that_writes_without_a_question_is_gone(start: Start) -> None:
    """The bytes it writes are not collected: the child ends of a broken pipe."""
    client = await start(scripted("while True: write(bytes(65536))"))
    async with asyncio.timeout(10):
        while "gone=''" in repr(client):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
    with pytest.raises(ChildGone, match="without a question"):
        await ask(client, ForgetLearned())


async def test_child_ignores_the_terminal_s_signals(start: Start) -> None:
    """Ctrl-C and a service manager's SIGTERM reach the whole group: draining is the gateway's."""
    client = await opened(start)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(client.pid, number)
        assert (await ask(client, MakeForecasts([view()]))).workloads


async def test_child_gives_way_and_sees_no_keys(start: Start) -> None:
    """The child has a lower priority and says which, is the first to be killed where memory runs
    out, and sees none of the gateway's secrets."""
    secrets = {"SAGESCHED_ADMIN_TOKEN": "hidden", "OPENAI_API_KEY": "hidden"}
    client = await start(environ={**own_environ(), **secrets})
    await ask(client, OpenModels(SETUP), 120.0)
    normal = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, client.pid) == normal
    # It opens at full speed, and gives way when it works.
    said = (await ask(client, MakeForecasts([view()]))).status.priority
    if said == IDLE:
        assert os.sched_getscheduler(client.pid) == os.SCHED_IDLE
    else:
        assert os.getpriority(os.PRIO_PROCESS, client.pid) == NICE > normal
    proc = Path(f"/proc/{client.pid}")
    assert proc.joinpath("oom_score_adj").read_text().strip() == "500"
    lines = proc.joinpath("environ").read_bytes().split(b"\0")
    assert {line.split(b"=")[0].decode() for line in lines if line} <= ENVIRONMENT


async def test_child_computes_with_the_same_kernels(start: Start) -> None:
    """The BLAS kernels and threads chosen for the gateway are the child's, too: other kernels
    round sums differently, and a processor may need the choice."""
    chosen = {"OPENBLAS_CORETYPE": "Prescott", "OMP_NUM_THREADS": "1"}
    answers = scripted("read(); write(b'\\x00\\x00\\x00\\x01\\x80'); time.sleep(600)")
    client = await start(answers, {**own_environ(), **chosen})
    await ask(client, ForgetLearned())  # it runs
    lines = Path(f"/proc/{client.pid}/environ").read_bytes().decode().split("\0")
    assert {f"{name}={value}" for name, value in chosen.items()} <= set(lines)


async def test_command_that_does_not_start_is_gone() -> None:
    """A command that cannot be started raises ChildGone, as a dead child does."""
    with pytest.raises(ChildGone, match="cannot be started"):
        await start_child(["/nonexistent/program"])
