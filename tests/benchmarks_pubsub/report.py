"""The report of a run, in Markdown."""

import statistics
from typing import Any

from tests.benchmarks.report import Summary, about, number, target_table
from tests.benchmarks_pubsub import targets
from tests.benchmarks_pubsub.peers import OURS, PEERS
from tests.benchmarks_pubsub.works import FULL, Channels, Drain, Latency, Work, Writers

# Columns: words, figure, digits, factor.
_Column = tuple[str, str, int, float]

_LATENCY: list[_Column] = [
    ("p50 ms", "p50", 2, 1e3),
    ("p90 ms", "p90", 2, 1e3),
    ("p99 ms", "p99", 2, 1e3),
    ("messages", "messages", 0, 1),
    ("lost", "lost", 0, 1),
]
_COLUMNS: dict[type[Work], list[_Column]] = {
    Latency: _LATENCY,
    Drain: [
        ("rows/s", "rps", 0, 1),
        ("first tenth", "first", 0, 1),
        ("last tenth", "last", 0, 1),
        ("handled", "messages", 0, 1),
        ("tables after, MB", "size", 1, 1e-6),
    ],
    Channels: [
        ("listening after s", "listening", 2, 1),
        *_LATENCY,
        ("to another channel", "astray", 0, 1),
        ("memory MB", "memory", 0, 1e-6),
        ("before MB", "memory_before", 0, 1e-6),
    ],
    Writers: [("transactions/s", "rps", 0, 1)],
}


def markdown(document: dict[str, Any]) -> str:
    """Return the report of a run."""
    summary = Summary(document, PEERS)
    works = [work for work in FULL if work.name in summary.works]
    tables = [_table(summary, work) for work in works if not isinstance(work, Writers)]
    writers = [work for work in works if isinstance(work, Writers)]
    parts = [about(document), target_table(summary, targets.ALL), *tables]
    return "\n\n".join(part for part in [*parts, _writers(summary, writers)] if part)


def _table(summary: Summary, work: Work) -> str:
    columns = _COLUMNS[type(work)]
    figure = columns[0][1]
    lines = [
        f"### {work.name}",
        "",
        f"| peer | {' | '.join(words for words, *_ in columns)} | ours / it |",
        "|---" + "|--:" * (len(columns) + 1) + "|",
    ]
    for peer in summary.peers:
        if (why := summary.missing.get((work.name, peer))) is not None:
            if why != "not supported":
                lines.append(f"| {peer} | {why} |" + " |" * len(columns))
            continue
        if summary.median(work.name, peer, figure) is None:
            continue
        cells = [
            number(summary.median(work.name, peer, name), digits, factor) or "0"
            for _, name, digits, factor in columns
        ]
        ratios = summary.ratios(figure, (work.name, OURS), (work.name, peer))
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        lines.append(f"| {peer} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def _writers(summary: Summary, works: list[Writers]) -> str:
    if not works:
        return ""
    lines = [
        "### Transactions a second that send a stored message",
        "",
        f"| peer | {' | '.join(work.name for work in works)} |",
        "|---" + "|--:" * len(works) + "|",
    ]
    for peer in summary.peers:
        cells = [number(summary.median(work.name, peer)) for work in works]
        if any(cells):
            lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)
