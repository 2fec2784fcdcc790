"""Plots of the sweeps, SVG and PNG, and in words where the cost of a query bends."""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot  # after the choice of how to draw
from matplotlib.figure import Figure

from tests.benchmarks.peers import OURS, PEERS
from tests.benchmarks.report import number
from tests.benchmarks.works import SWEEPS, Sweep

# A cost has bent where it is so much more than the least.
BENT = 1.25

# Serves one request at a time: its cost compares, its requests per second and latency do not.
ONE_AT_A_TIME = "django-sync"

# What is drawn.
FIGURES = ("rps", "cpu_per_query", "p50", "p90", "p99")

# Of a peer: its points, by what is swept over.
Curves = dict[str, dict[int, dict[str, Any]]]


def draw(document: dict[str, Any], folder: Path) -> str:
    """Write the plots of all sweeps into *folder*; return their part of the report."""
    parts = []
    for sweep in SWEEPS:
        if not (curves := _curves(document, sweep)):
            continue
        stem = sweep.name.replace(" ", "-")
        _save(_cost(sweep, curves), folder / f"{stem}-cost")
        served = {peer: points for peer, points in curves.items() if peer != ONE_AT_A_TIME}
        _save(_requests(sweep, served), folder / f"{stem}-requests")
        _save(_latency(sweep, served), folder / f"{stem}-latency")
        parts.append(
            f"### Sweep over {sweep.name}\n\n"
            f"![Requests per second]({stem}-requests.svg)\n"
            f"![CPU per query]({stem}-cost.svg)\n"
            f"![Latency]({stem}-latency.svg)\n\n"
            f"{_table(sweep, curves)}\n\n{_bends(sweep, curves)}\n"
        )
    return "\n" + "\n".join(parts)


def words(document: dict[str, Any]) -> str:
    """Return the sweeps' costs in a table each, and where ours bends, for the README."""
    parts = []
    for sweep in SWEEPS:
        if curves := _curves(document, sweep):
            ours = {peer: points for peer, points in curves.items() if peer == OURS}
            parts.append(f"\n\n{_table(sweep, curves)}\n\n{_bends(sweep, ours)}")
    return "".join(parts)


def _curves(document: dict[str, Any], sweep: Sweep) -> Curves:
    """Return the medians of the rounds."""
    rounds: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    places = {work.name: place for place, work in sweep.points.items()}
    for each in document["results"]:
        if each["kind"] == f"sweep over {sweep.name}" and each.get("requests"):
            rounds[each["peer"], places[each["work"]]].append(each)
    found: Curves = {}
    order = list(PEERS)
    for (peer, place), measured in sorted(
        rounds.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
    ):
        found.setdefault(peer, {})[place] = {
            figure: statistics.median(each[figure] for each in measured) for figure in FIGURES
        }
    return found


def _axes(sweep: Sweep, title: str, unit: str) -> tuple[Figure, Any]:
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.set(xscale="log", xlabel=sweep.axis, ylabel=unit, title=title)
    axes.set_xticks(list(sweep.points), labels=[f"{place:,}" for place in sweep.points])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    return figure, axes


def _line(axes: Any, peer: str, points: dict[int, float], **style: Any) -> None:
    ours = peer == OURS
    axes.plot(
        list(points),
        list(points.values()),
        marker="o",
        markersize=3,
        label=peer,
        linewidth=2.5 if ours else 1.2,
        zorder=3 if ours else 2,
        **style,
    )


def _requests(sweep: Sweep, curves: Curves) -> Figure:
    figure, axes = _axes(sweep, f"Requests per second against {sweep.axis}", "requests/s")
    for peer, points in curves.items():
        _line(axes, peer, {place: each["rps"] for place, each in points.items()})
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure


def _cost(sweep: Sweep, curves: Curves) -> Figure:
    figure, axes = _axes(sweep, f"CPU time per query against {sweep.axis}", "us")
    for peer, points in curves.items():
        _line(axes, peer, {place: each["cpu_per_query"] * 1e6 for place, each in points.items()})
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure


def _latency(sweep: Sweep, curves: Curves) -> Figure:
    title = f"Latency against {sweep.axis}: p50, p90 (dashed), p99 (dotted)"
    figure, axes = _axes(sweep, title, "ms")
    for index, (peer, points) in enumerate(curves.items()):
        for share, style in (("p50", "-"), ("p90", "--"), ("p99", ":")):
            _line(
                axes,
                peer if share == "p50" else "_",
                {place: each[share] * 1e3 for place, each in points.items()},
                linestyle=style,
                color=f"C{index % 10}",
            )
    axes.set(yscale="log")
    axes.legend(fontsize="small")
    return figure


def _save(figure: Figure, stem: Path) -> None:
    for kind in ("svg", "png"):
        figure.savefig(stem.with_suffix(f".{kind}"), dpi=120)
    pyplot.close(figure)


def _table(sweep: Sweep, curves: Curves) -> str:
    lines = [
        f"| CPU us/query at {sweep.axis} | {' | '.join(f'{place:,}' for place in sweep.points)} |",
        "|---" + "|--:" * len(sweep.points) + "|",
    ]
    for peer, points in curves.items():
        cells = [
            number(points[place]["cpu_per_query"], 0, 1e6) if place in points else ""
            for place in sweep.points
        ]
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _bends(sweep: Sweep, curves: Curves) -> str:
    """Say for each peer where a query is cheapest, and from where on it costs clearly more."""
    lines = []
    for peer, points in curves.items():
        costs = {place: each["cpu_per_query"] for place, each in sorted(points.items())}
        least = min(costs, key=costs.__getitem__)
        beyond = [place for place in costs if place > least]
        bend = next(
            (
                place
                for index, place in enumerate(beyond)
                if all(costs[each] > BENT * costs[least] for each in beyond[index:])
            ),
            None,
        )
        words = (
            f"{BENT - 1:.0%} more and above from {bend:,} on"
            if bend
            else f"never {BENT - 1:.0%} more beyond"
        )
        lines.append(f"- {peer}: least at {least:,}, {costs[least] * 1e6:,.0f} us; {words}.")
    return "\n".join(lines)
