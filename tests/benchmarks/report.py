"""The report of a run, in Markdown."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tests.benchmarks import targets
from tests.benchmarks.peers import OURS, PEERS


class Summary:
    """Medians over the rounds of a run; *known* are the peers in the order of the tables."""

    def __init__(self, document: dict[str, Any], known: Iterable[str] = PEERS) -> None:
        self._rounds: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self.works: list[str] = []
        measured = {each["peer"] for each in document["results"]}
        self.peers = [name for name in known if name in measured]
        # What was tried and gave no figures.
        self.missing: dict[tuple[str, str], str] = {}
        for each in document["results"]:
            if each["kind"].startswith("sweep"):
                continue
            work, peer = each["work"], each["peer"]
            if work not in self.works:
                self.works.append(work)
            if each.get("unsupported"):
                self.missing[work, peer] = "not supported"
            elif each.get("failed"):
                self.missing[work, peer] = f"failed: {each['failed']}"
            else:
                self._rounds[work, peer].append(each)

    def values(self, work: str, peer: str, figure: str) -> list[float]:
        """Return a figure in all rounds that have it."""
        rounds = self._rounds.get((work, peer), [])
        return [each[figure] for each in rounds if each.get(figure) is not None]

    def median(self, work: str, peer: str, figure: str = "rps") -> float | None:
        values = self.values(work, peer, figure)
        return statistics.median(values) if values else None

    def spread(self, work: str, peer: str) -> str:
        """Return how far the rounds lie apart: half of highest less lowest, of the median."""
        values = self.values(work, peer, "rps")
        if len(values) < 2:
            return ""
        return f"±{(max(values) - min(values)) / 2 / statistics.median(values):.0%}"

    def ratios(self, figure: str, ours: tuple[str, str], theirs: tuple[str, str]) -> list[float]:
        """Return what one (work, peer) has of another, round by round."""
        others = {each["round"]: each.get(figure) for each in self._rounds.get(theirs, [])}
        return [
            each[figure] / others[each["round"]]
            for each in self._rounds.get(ours, [])
            if each.get(figure) is not None and others.get(each["round"])
        ]

    def ratio(self, work: str, peer: str) -> float | None:
        """Return our requests per second divided by the peer's; the median of the rounds'."""
        ratios = self.ratios("rps", (work, OURS), (work, peer))
        return statistics.median(ratios) if ratios else None


def markdown(document: dict[str, Any]) -> str:
    """Return the report of a run."""
    summary = Summary(document)
    return "\n\n".join(
        [for_readme(document), *(_work(summary, work) for work in summary.works), ""]
    )


def for_readme(document: dict[str, Any]) -> str:
    """Return the part of the report that the project's README shows."""
    summary = Summary(document)
    parts = [about(document), target_table(summary, targets.ALL), requests_table(summary)]
    return "\n\n".join(part for part in parts if part)


def about(document: dict[str, Any]) -> str:
    """Return when, where and of what the figures are."""
    machine = document["machine"]
    named = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return (
        f"Run of {document['date']}, {document['minutes']:.0f} minutes, by"
        f" `{document['command']}`, on {machine['cpu']}, {machine['cores']} cores,"
        f" {machine['system']}; load before {machine['load_before'][0]:.1f}."
        f" pgbackend at {document['commit']}, Python {machine['python']},"
        f" PostgreSQL {machine['postgresql']}, {named}."
    )


def target_table(summary: Summary, wanted_of: Iterable[targets.Target]) -> str:
    """Return the targets with what was reached; "" if nothing of them was measured."""
    lines = [
        "| target | against | wanted | median | rounds | |",
        "|---|---|--:|--:|--:|---|",
    ]
    for target in wanted_of:
        match target:
            case targets.Ratio(work, peer, wanted):
                words, against, least = work, peer, True
                values = summary.ratios("rps", (work, OURS), (work, peer))
            case targets.Cost(words, figure, work, other, peer, wanted):
                against, least = (peer if peer != OURS else other), False
                values = summary.ratios(figure, (work, OURS), (other, peer))
            case targets.Least(words, work, peer, figure, wanted):
                against, least = "", True
                values = summary.values(work, peer, figure)
            case targets.Limit(words, work, peer, figure, wanted, less, factor):
                against, least = "", False
                values = [value * factor for value in summary.values(work, peer, figure)]
                if less:
                    values = [
                        value - before * factor
                        for value, before in zip(
                            values, summary.values(work, peer, less), strict=True
                        )
                    ]
        if not values:
            continue
        middle = statistics.median(values)
        met = middle >= wanted if least else middle <= wanted
        digits = getattr(target, "digits", 2)
        span = f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"
        lines.append(
            f"| {words} | {against} | {'≥' if least else '≤'} {wanted:g} |"
            f" {middle:,.{digits}f} | {span} | {'met' if met else '**not met**'} |"
        )
    return "\n".join(["### Targets", "", *lines]) if len(lines) > 2 else ""


def requests_table(summary: Summary) -> str:
    """Return requests per second of all works and peers, for the README."""
    lines = [
        f"| requests/s | {' | '.join(summary.peers)} |",
        "|---" + "|--:" * len(summary.peers) + "|",
    ]
    for work in summary.works:
        cells = [
            number(summary.median(work, peer)) or ("—" if (work, peer) in summary.missing else "")
            for peer in summary.peers
        ]
        lines.append(f"| {work} | {' | '.join(cells)} |")
    return "\n".join(["### Requests per second", "", *lines]) if summary.works else ""


def _work(summary: Summary, work: str) -> str:
    lines = [
        f"### {work}",
        "",
        "| peer | requests/s | spread | ours / it | p50 ms | p99 ms | CPU/query us | threads"
        " | memory MB | of it in the run | connections |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for peer in summary.peers:
        if (why := summary.missing.get((work, peer))) is not None:
            lines.append(f"| {peer} | {why} |" + " |" * 9)
            continue
        if summary.median(work, peer) is None:
            continue
        rows = summary.median(work, peer, "rows_per_second")
        before = summary.median(work, peer, "memory_before") or 0
        peak = summary.median(work, peer, "memory_peak")
        cells = [
            peer,
            number(summary.median(work, peer)) + (f" ({number(rows)} rows/s)" if rows else ""),
            summary.spread(work, peer),
            number(summary.ratio(work, peer), 2),
            number(summary.median(work, peer, "p50"), 2, 1e3),
            number(summary.median(work, peer, "p99"), 2, 1e3),
            number(summary.median(work, peer, "cpu_per_query"), 0, 1e6),
            number(summary.median(work, peer, "threads")),
            number(peak, 0, 1e-6),
            number(peak and peak - before, 0, 1e-6),
            number(summary.median(work, peer, "connections")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float | None, digits: int = 0, factor: float = 1) -> str:
    """Return a figure for a table; small ones with digits after the point."""
    if value is None:
        return ""
    value *= factor
    if digits == 0 and 0 < value < 10 and value != int(value):
        digits = 1
    return f"{value:,.{digits}f}"
