"""Charts: where curves and marks are, and which scale they are on."""

from __future__ import annotations

import re

import numpy as np

from provscale.run.charts import POINTS, Series, binned, chart, swatch


def paths(svg: str, run: int) -> list[list[tuple[float, float]]]:
    """The points of every line in a run's colour, in the chart's units; y grows downwards."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: none; [^"]*stroke: var\(--run{run}\)', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)] for path in found]


def test_a_curve_is_where_its_points_are() -> None:
    """Straight on a linear axis: equal steps of x and y are equal distances."""
    ((a, b, c),) = paths(chart([Series(0, [1, 2, 3], [1.0, 2.0, 3.0])], "epoch", "a line"), 0)
    np.testing.assert_allclose([b[0] - a[0], a[1] - b[1]], [c[0] - b[0], b[1] - c[1]], rtol=1e-3)
    assert b[0] > a[0]
    assert b[1] < a[1]


def test_values_that_span_decades_are_on_a_logarithmic_axis() -> None:
    """0.01, 0.1 and 1 are equal distances apart; with a zero among them the axis is linear."""
    ((a, b, c),) = paths(chart([Series(0, [1, 2, 3], [0.01, 0.1, 1.0])], "step", "decades"), 0)
    np.testing.assert_allclose(a[1] - b[1], b[1] - c[1], rtol=1e-3)
    ((a, b, c),) = paths(chart([Series(0, [1, 2, 3], [0.0, 0.1, 1.0])], "step", "with zero"), 0)
    np.testing.assert_allclose((b[1] - c[1]) / (a[1] - b[1]), 9, rtol=1e-2)


def test_long_curves_are_means_of_neighbours() -> None:
    x, y = list(range(1, 1001)), [float(value % 10) for value in range(1000)]
    at, means = binned(x, y)
    assert len(at) == POINTS
    assert means == [4.5] * POINTS  # of 0 to 9
    assert at[:2] == [5.5, 15.5]
    assert binned([1, 2], [3.0, 5.0]) == ([1, 2], [3.0, 5.0])
    assert binned([], []) == ([], [])


def test_runs_differ_by_colour_and_by_dashes() -> None:
    svg = chart([Series(run, [1, 2], [run + 1.0, run + 2.0]) for run in range(3)], "epoch", "three")
    assert [len(paths(svg, run)) for run in range(3)] == [1, 1, 1]
    dashes = [re.search(rf"stroke-dasharray: ([^;]*);[^\"]*var\(--run{run}\)", svg) for run in range(1, 3)]
    assert all(dashes)
    assert dashes[0].group(1) != dashes[1].group(1)  # type: ignore[union-attr]
    assert len({swatch(run) for run in range(6)}) == 6


def test_marks_and_gaps() -> None:
    """A ring at the best epoch and a diamond elsewhere; a NaN is a gap, and an empty chart is one."""
    plain = chart([Series(0, [1, 2], [1.0, 2.0])], "epoch", "plain").count("<use")
    ringed = chart([Series(0, [1, 2], [1.0, 2.0], ring=2, diamonds=[(2, 1.5)])], "epoch", "marked")
    assert ringed.count("<use") == plain + 2
    lines = paths(chart([Series(0, [1, 2, 3, 4], [1.0, 2.0, float("nan"), 3.0])], "epoch", "gap"), 0)
    assert sum(len(line) for line in lines) in (2, 3)
    assert paths(chart([], "epoch", "nothing & <none>"), 0) == []
    assert 'aria-label="nothing &amp; &lt;none&gt;"' in chart([], "epoch", "nothing & <none>")
