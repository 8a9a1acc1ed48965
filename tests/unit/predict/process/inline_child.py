"""Children of a predictor that work in the test's own process, and how it is asked and taught.

`InlineChild` has the real child's models, and its questions and answers go through the real
messages; the process and the socket alone are left out (test_child_client.py has those).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from gateway.predict.lesson import Lesson
from gateway.predict.process.background_learning import ROOM
from gateway.predict.process.child_client import start_child
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.wire import (
    ChildAnswer,
    ChildGone,
    MakeForecasts,
    Question,
    StoreLessons,
    TakeLessons,
    answer_decoder,
    encoded,
    message_encoder,
)
from gateway.predict.process.worker import ModelHost
from gateway.predict.prompt_view import PromptView
from gateway.shipped import own_command, own_environ
from gateway.types import HistoryRow, Workload

WAIT_S = 30.0
POEM = "Write a short poem about the sea"
Make = Callable[..., Predictor]
"""Starts a predictor that is stopped after the test (conftest.py)."""

real_child = partial(start_child, own_command("predictor"), own_environ())


def view(text: str = POEM, **more: Any) -> PromptView:
    return PromptView.of_prompt(text, tenant=more.pop("tenant", "a"), model="m", **more)


def lesson(tokens: int, text: str = POEM, **more: Any) -> Lesson:
    values = {"prompt_tokens": None, "censored": False, "success": True, "wall_s": 1.0}
    seen = more.pop("view", None) or view(text)
    return Lesson(view=seen, output_tokens=tokens, **(values | more))


def always() -> bool:
    return True


class Shelf:
    """A history of inline children, which can be held, or fail; `path` stands for its file."""

    _all: dict[str, Shelf] = {}  # noqa: RUF012 - of all tests
    _numbers = count()

    def __init__(self) -> None:
        self.path = Path(f"shelf-{next(self._numbers)}")
        self.rows: list[HistoryRow] = []
        self.error: Exception | None = None
        self.came = asyncio.Event()  # rows are here to be stored
        self._held: list[tuple[Future[int], list[HistoryRow]]] | None = None
        self._all[str(self.path)] = self

    @classmethod
    def at(cls, path: str) -> Shelf:
        """The shelf of a path."""
        return cls._all[path]

    def put(self, batch: Sequence[HistoryRow]) -> Future[int]:
        future: Future[int] = Future()
        self.came.set()
        if self._held is None:
            self._store(future, list(batch))
        else:
            self._held.append((future, list(batch)))
        return future

    def close(self) -> None:
        self.release()

    def hold(self) -> None:
        """Store nothing until `release`."""
        self._held = []

    def release(self) -> None:
        held, self._held = self._held or [], None
        for future, batch in held:
            self._store(future, batch)

    async def wait(self, rows: int = 1) -> list[HistoryRow]:
        """Wait until so many rows are stored."""
        await until(lambda: len(self.rows) >= rows)
        return self.rows

    def _store(self, future: Future[int], batch: list[HistoryRow]) -> None:
        if self.error is not None:
            future.set_exception(self.error)
        else:
            self.rows += batch
            future.set_result(len(batch))


class InlineChild:
    """A child without a process, which can be held before it answers. It learns in turns of the
    loop, as the real one does between questions."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.held = asyncio.Event()  # a question has come that is not answered
        self._gate = asyncio.Event()
        self._gate.set()
        self._host = ModelHost(lambda: "normal", Shelf.at)
        self._turn: asyncio.TimerHandle | None = None
        self._tell: Callable[[str], object] = lambda why: None

    def hold(self) -> None:
        """Answer nothing until `release`."""
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
        payload = encoded(question)
        if not self._gate.is_set():
            self.held.set()
        await asyncio.wait_for(self._gate.wait(), WAIT_S)
        await asyncio.sleep(0)  # others have their turn, as while a real child works
        answer = message_encoder.encode(self._host.answer(payload))
        if self._turn is None:
            self._work()
        return answer_decoder.decode(answer)

    def watch(self, gone: Callable[[str], object]) -> None:
        self._tell = gone

    def die(self, why: str = "it was killed") -> None:
        """End by itself."""
        self._stop()
        self._tell(why)

    async def close(self) -> None:
        self._stop()
        self._host.close()
        self.closed.set()

    def _work(self) -> None:
        pause_s, self._turn = self._host.work(), None
        if pause_s is not None:
            self._turn = asyncio.get_running_loop().call_later(pause_s, self._work)

    def _stop(self) -> None:
        if self._turn is not None:
            self._turn.cancel()


class FragileChild(InlineChild):
    """A child that is gone, for good, when it reads a certain word."""

    _gone = False

    async def ask(self, question: Question, timeout_s: float) -> ChildAnswer:
        self._gone = self._gone or "fatal" in text_of(question)
        if self._gone:
            raise ChildGone("it read the word")
        return await super().ask(question, timeout_s)


def text_of(question: Question) -> str:
    """The prompts in a question."""
    if isinstance(question, MakeForecasts):
        return " ".join(view.text for view in question.views)
    if isinstance(question, TakeLessons):
        return " ".join(one.view.text for one in question.lessons)
    if isinstance(question, StoreLessons):
        return " ".join(one.view.text for one in question.lessons.values())
    return ""


class Children:
    """Starts children of a kind, and remembers them."""

    def __init__(self, kind: Callable[[], InlineChild] = InlineChild) -> None:
        self.made: list[InlineChild] = []
        self._kind = kind

    @property
    def last(self) -> InlineChild:
        return self.made[-1]

    async def __call__(self) -> InlineChild:
        self.made.append(self._kind())
        return self.last


class Mailbox:
    """Takes what a predictor reports."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._came = asyncio.Event()

    def __call__(self, item: Any) -> None:
        self.items.append(item)
        self._came.set()

    async def wait(self, count: int = 1) -> list[Any]:
        async with asyncio.timeout(WAIT_S):
            while len(self.items) < count:
                self._came.clear()
                await self._came.wait()
        return self.items


async def until(true: Callable[[], bool]) -> None:
    """Wait for a condition that nothing reports."""
    async with asyncio.timeout(WAIT_S):
        while not true():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


async def refined(predictor: Predictor, seen: PromptView) -> Workload:
    mailbox = Mailbox()
    assert predictor.refine(seen, mailbox, always)
    workload: Workload = (await mailbox.wait())[0]
    return workload


async def learned(predictor: Predictor, tokens: int, text: str = "", **more: Any) -> None:
    """Wait until one answer is learned."""
    taught = lesson(tokens, text, **more) if text else lesson(tokens, **more)
    await lessons_learned(predictor, [taught])


async def all_learned(predictor: Predictor, tokens: int, texts: Iterable[str]) -> None:
    """Wait until answers of one length are learned."""
    await lessons_learned(predictor, [lesson(tokens, text) for text in texts])


async def lessons_learned(predictor: Predictor, lessons: Sequence[Lesson]) -> None:
    for at in range(0, len(lessons), ROOM):  # no more than wait, so that none is left out
        before, part = predictor.snapshot(), lessons[at : at + ROOM]
        for one in part:
            assert predictor.learn(one)
        ended = before.learned + before.learn_lost + len(part)
        await until(lambda e=ended: (s := predictor.snapshot()).learned + s.learn_lost >= e)  # type: ignore[misc]


async def holding(predictor: Predictor, child: InlineChild) -> None:
    """Hold the child at a forecast, with nothing else waiting."""
    child.hold()
    assert predictor.refine(view("held"), lambda _: None, always)
    await asyncio.wait_for(child.held.wait(), WAIT_S)
