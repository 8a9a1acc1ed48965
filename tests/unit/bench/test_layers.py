"""The layer that a sample counts for."""

from __future__ import annotations

from tests.bench.layers import LOOP, OTHER, shares

GATEWAY = "/somewhere/checkout/gateway"
RUN = "/usr/lib/python3.11/asyncio/runners.py|Runner.run"


def test_a_sample_counts_for_the_innermost_function_that_has_a_layer() -> None:
    """The standard library counts for its caller, whose own caller gets nothing."""
    stack = [
        "/usr/lib/python3.11/json/encoder.py|JSONEncoder.encode",
        f"{GATEWAY}/observe/logs.py|Logs.ended",
        f"{GATEWAY}/engine/relay.py|relay",
        RUN,
    ]
    found = shares([(3, False, stack), (2, False, stack[2:])])
    assert found.layers == {"observe": 3, "engine": 2}
    assert found.functions["observe", "gateway/observe/logs.py Logs.ended"] == 3


def test_time_between_callbacks_is_not_the_next_callbacks() -> None:
    callback = [f"{GATEWAY}/api/protocol.py|GatewayProtocol.data_received", RUN]
    found = shares([(5, True, callback), (2, False, [RUN]), (1, False, callback)])
    assert found.layers == {LOOP: 7, "api": 1}


def test_a_stack_without_a_layer_is_counted_all_the_same() -> None:
    assert shares([(4, False, ["/usr/lib/python3.11/runpy.py|run_module"])]).layers == {OTHER: 4}
