"""The parts of the composition root that decide something by themselves."""

from __future__ import annotations

import asyncio

from gateway.app import Repeated


def test_repeated_call_goes_on_after_a_fault_until_it_is_cancelled() -> None:
    """The first call is made at once; one that raises does not end the series."""

    async def play() -> list[int]:
        calls: list[int] = []
        third = asyncio.get_running_loop().create_future()

        def call() -> None:
            calls.append(len(calls))
            if len(calls) == 1:
                raise ValueError("a fault")
            if len(calls) == 3:
                third.set_result(None)

        repeated = Repeated(0.0, call)
        repeated.start()
        assert calls == [0]
        await third
        repeated.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        return calls

    assert asyncio.run(play()) == [0, 1, 2]
