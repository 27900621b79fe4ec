"""Draws the curves that plot.py measures: one panel for each dtype, one line for each call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt

# Colours of Okabe and Ito, which the colour-blind tell apart; the shapes say the same without colour.
COLOURS = {"read probe": "#6b6b6b", "xe.cross_entropy": "#0072b2", "xe.row_stats": "#d55e00"}
SHAPES = ("circle", "square", "triangle-up")
PANEL_WIDTH, PANEL_HEIGHT = 380, 260


@dataclass(frozen=True)
class Curve:
    """A chart: what runs along its horizontal axis and how that is called."""

    name: str
    column: str
    axis_title: str
    title: str


CURVES = (
    Curve("vocabulary", "vocab", "vocabulary (columns, logarithmic)", "Speed against vocabulary, many rows"),
    Curve("rows", "rows", "rows in a call (logarithmic)", "Speed against rows, vocabulary 128,256"),
)


def subtitle(run: dict[str, Any]) -> list[str]:
    """Names the machine, the instruction set and the version behind a chart."""
    machine = f"{run['cpu']}, {run['cores']} cores, {run['isa']}, {run['threads']} threads"
    return [machine, f"xentrs {run['xentrs']}, commit {run['commit']}, {run['date'][:10]}; medians"]


def chart(curve: Curve, points: list[dict[str, Any]]) -> Any:
    """Makes the chart of one curve; `points` are the CSV columns of plot.py."""
    values = [
        {"x": int(point[curve.column]), "y": float(point["gb_per_s"]), "call": point["call"], "dtype": point["dtype"]}
        for point in points
        if point["curve"] == curve.name
    ]
    powers = sorted({value["x"] for value in values if value["x"].bit_count() == 1})
    x_axis = alt.Axis(values=powers, format=",", labelAngle=-45, title=curve.axis_title)
    legend = alt.Legend(title=None, orient="top", symbolSize=90, labelFontSize=13)
    names = list(COLOURS)
    lines = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(point=alt.OverlayMarkDef(size=55, filled=True), strokeWidth=2)
        .encode(
            x=alt.X("x:Q", axis=x_axis, scale=alt.Scale(type="log", base=2, nice=False)),
            y=alt.Y("y:Q", title="logits read (GB/s)", scale=alt.Scale(zero=True)),
            color=alt.Color("call:N", scale=alt.Scale(domain=names, range=list(COLOURS.values())), legend=legend),
            shape=alt.Shape("call:N", scale=alt.Scale(domain=names, range=list(SHAPES)), legend=legend),
        )
        .properties(width=PANEL_WIDTH, height=PANEL_HEIGHT)
    )
    dtypes = list(dict.fromkeys(value["dtype"] for value in values))
    header = alt.Header(title=None, labelFontSize=14, labelFontWeight="bold")
    title = alt.TitleParams(curve.title, subtitle=subtitle(points[0]), anchor="start", fontSize=17, subtitleFontSize=12)
    panels = lines.facet(column=alt.Column("dtype:N", sort=dtypes, header=header))
    return panels.properties(title=title, background="white").configure_axis(labelFontSize=12, titleFontSize=13)


def draw(points: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes speed-vocabulary.svg and speed-rows.svg, those that there are points for."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for curve in CURVES:
        if any(point["curve"] == curve.name for point in points):
            paths.append(folder / f"speed-{curve.name}.svg")
            chart(curve, points).save(str(paths[-1]), format="svg")
    return paths
