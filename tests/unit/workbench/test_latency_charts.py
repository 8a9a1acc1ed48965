"""The pictures: well-formed, with a line for each policy."""

from __future__ import annotations

from xml.etree import ElementTree

from gateway.workbench.simulate import latency_charts as plots
from gateway.workbench.simulate.cells import PolicyFigures

SVG = "{http://www.w3.org/2000/svg}"
PLAYED = PolicyFigures(
    {}, {}, [0.5, 2.0, 30.0], [0.0, 0.0, 0.0], [10, 100, 900], [(0.5, 8.0, 3)] * 3
)


def lines(text: str) -> int:
    return len(ElementTree.fromstring(text).findall(f"{SVG}polyline"))


def test_latencies_draw_each_shown_policy() -> None:
    """The picture has a line for each played policy of SHOWN and for no other."""
    found = plots.latencies("a<b", {"naive": [PLAYED], "ours": [PLAYED], "quota": []}, short=False)
    assert lines(found) == 2


def test_zeros_and_empty_policies_are_drawn() -> None:
    """Zeros on a logarithmic axis and a policy without an answer are no error."""
    assert lines(plots.waits("t", [PLAYED])) == 3
    assert lines(plots.waits("t", [])) == 3
    assert lines(plots.latencies("t", {"ours": [PLAYED]}, short=True)) == 1


def test_window_draws_what_was_and_what_is_best() -> None:
    """The picture has the requests in flight, the window and the provider's best."""
    assert lines(plots.window("t", PLAYED, 16)) == 3
    assert lines(plots.window("t", PolicyFigures({}), 16)) == 3
