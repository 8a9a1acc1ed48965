"""Children of a predictor that work in the test's own process, and how it is asked and taught.

`InlineChild` has the real child's models, and its questions and answers go through the real
messages; the process and the socket alone are left out (test_child_client.py has those).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from gateway.predict.lesson import Lesson
from gateway.predict.process.child_client import start_child
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.wire import (
    ChildAnswer,
    ChildGone,
    DraftRows,
    LearnLessons,
    MakeForecast,
    Question,
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


class InlineChild:
    """A child without a process, which can be held before it answers."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.held = asyncio.Event()  # a question has come that is not answered
        self._gate = asyncio.Event()
        self._gate.set()
        self._host = ModelHost(lambda: None)

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
        return answer_decoder.decode(message_encoder.encode(self._host.answer(payload)))

    async def close(self) -> None:
        self.closed.set()


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
    if isinstance(question, MakeForecast):
        return question.view.text
    if isinstance(question, LearnLessons | DraftRows):
        return " ".join(one.view.text for one in question.lessons)
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


async def learned(predictor: Predictor, tokens: int, text: str = "", **more: Any) -> HistoryRow:
    mailbox = Mailbox()
    taught = lesson(tokens, text, **more) if text else lesson(tokens, **more)
    assert predictor.learn(taught, done=mailbox)
    row: HistoryRow = (await mailbox.wait())[0]
    return row


async def all_learned(predictor: Predictor, tokens: int, texts: Iterable[str]) -> list[HistoryRow]:
    """Rows of answers of one length, learned in batches: a lone lesson lingers for others."""
    mailbox, count = Mailbox(), 0
    for count, text in enumerate(texts, 1):  # noqa: B007 - counts them
        assert predictor.learn(lesson(tokens, text), done=mailbox)
    return await mailbox.wait(count)


async def holding(predictor: Predictor, child: InlineChild) -> None:
    """Hold the child at a forecast, with nothing else waiting."""
    child.hold()
    assert predictor.refine(view("held"), lambda _: None, always)
    await asyncio.wait_for(child.held.wait(), WAIT_S)
