"""A predictor that is asked, taught and held up: what several of its tests have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from gateway.predict.lesson import Lesson
from gateway.predict.process.backend import BackendGone, Local
from gateway.predict.process.predictor import Predictor
from gateway.predict.view import PromptView
from gateway.types import HistoryRow, Workload

WAIT_S = 30.0
Make = Callable[..., Predictor]
"""Starts a predictor that is stopped after the test (conftest.py)."""


def view(text: str = "Write a short poem about the sea", **more: Any) -> PromptView:
    return PromptView.of_prompt(text, tenant=more.pop("tenant", "a"), model="m", **more)


def always() -> bool:
    return True


class Inbox:
    """Takes what comes home from the thread."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._here = threading.Condition()

    def __call__(self, item: Any) -> None:
        with self._here:
            self.items.append(item)
            self._here.notify()

    def wait(self, count: int = 1) -> list[Any]:
        with self._here:
            assert self._here.wait_for(lambda: len(self.items) >= count, WAIT_S)
        return self.items


def refined(predictor: Predictor, seen: PromptView) -> Workload:
    inbox = Inbox()
    assert predictor.refine(seen, inbox, always)
    found: Workload = inbox.wait()[0]
    return found


def learned(predictor: Predictor, seen: PromptView, tokens: int, **more: Any) -> HistoryRow:
    inbox = Inbox()
    values = {"prompt_tokens": None, "censored": False, "success": True, "wall_s": 1.0} | more
    assert predictor.learn(seen, output_tokens=tokens, done=inbox, **values)
    row: HistoryRow = inbox.wait()[0]
    return row


class Gate:
    """Holds the predictor thread inside an item until it is opened."""

    def __init__(self, predictor: Predictor) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        assert predictor.refine(view("gate"), lambda _: None, self._wait)
        assert self._entered.wait(WAIT_S)

    def _wait(self) -> bool:
        self._entered.set()
        return not self._open.wait(WAIT_S)

    def open(self) -> None:
        self._open.set()


class Fragile(Local):
    """A backend that is gone, for good, when it reads a certain word."""

    _gone = False

    def _read(self, *views: PromptView) -> None:
        self._gone = self._gone or any("fatal" in one.text for one in views)
        if self._gone:
            raise BackendGone("it read the word")

    def forecast(self, view: PromptView) -> Workload:
        self._read(view)
        return super().forecast(view)

    def learn(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        self._read(*(lesson.view for lesson in lessons))
        return super().learn(lessons)

    def draft(self, lessons: Sequence[Lesson]) -> list[HistoryRow | Exception]:
        self._read()
        return super().draft(lessons)
