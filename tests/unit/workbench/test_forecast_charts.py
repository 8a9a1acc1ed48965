"""The pictures: well-formed SVG with what it is given in its place."""

from __future__ import annotations

from xml.etree import ElementTree

from gateway.workbench.evaluate import forecast_charts as plots
from gateway.workbench.evaluate.evaluation_report import Truth
from tests.unit.workbench.evaluate_cases import case, flat

SVG = "{http://www.w3.org/2000/svg}"


def test_axis_places_values() -> None:
    """Places are linear or logarithmic, and a value outside stands at the end."""
    linear = plots.Axis("x", 0, 10, ())
    assert [linear.share(v) for v in (-1, 0, 5, 20)] == [0, 0, 0.5, 1]
    log = plots.Axis("x", 1, 10_000, (), log=True)
    assert [log.share(v) for v in (0, 1, 100, 10_000)] == [0, 0, 0.5, 1]


def test_calibration_draws_each_variant() -> None:
    """Each variant has a line and an escaped name, beside the diagonal."""
    levels = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
    root = ElementTree.fromstring(plots.calibration({"full": levels, "a<b": levels}))
    assert len(root.findall(f"{SVG}polyline")) == 3
    texts = {text.text for text in root.findall(f"{SVG}text")}
    assert {"full", "a<b", "right"} <= texts


def test_predicted_thins_out_many_rows() -> None:
    """A cloud has a point per row, up to a bound."""
    for count, shown in ((50, 50), (10_000, plots.POINTS)):
        truth = Truth([case(i, 1 + i) for i in range(count)])
        root = ElementTree.fromstring(plots.predicted(truth, flat([9.0] * count), "full"))
        assert len(root.findall(f"{SVG}circle")) == shown


def test_tau_over_time_skips_what_has_no_tau() -> None:
    """A window without a figure leaves a gap and is no error."""
    root = ElementTree.fromstring(
        plots.tau_over_time({"full": [[500.0, 0.4], [750.0, None], [1000.0, 0.5]], "none": []})
    )
    line = root.findall(f"{SVG}polyline")[0]
    assert len(line.attrib["points"].split()) == 2
