"""The report of a run, in Markdown."""

from typing import Any

from tests.benchmarks.report import Summary, about, number, target_table
from tests.benchmarks_rpc import targets
from tests.benchmarks_rpc.peers import CELERY, PEERS
from tests.benchmarks_rpc.works import GATHERED, SINGLY, THREAD, WORKS


def compare(results: list[dict[str, Any]]) -> None:
    """Add to results what they are compared with the others of their round."""
    found = {(each["work"], each["peer"], each["round"]): each.get("p50") for each in results}
    for each in results:
        own, peer, number = each.get("p50"), each["peer"], each["round"]
        base = found.get((THREAD.name, CELERY, number))
        if own and base and each["work"] == THREAD.name:
            each["above"], each["of_celery"] = own - base, own / base
        singly = found.get((SINGLY.name, peer, number))
        if own and singly and each["work"] == GATHERED.name:
            each["speedup"] = singly / own


def markdown(document: dict[str, Any]) -> str:
    """Return the report of a run."""
    summary = Summary(document, PEERS)
    tables = [_table(summary, work.name) for work in WORKS if work.name in summary.works]
    parts = [about(document), target_table(summary, targets.ALL), *tables]
    return "\n\n".join(part for part in parts if part)


def _table(summary: Summary, work: str) -> str:
    lines = [
        f"### {work}",
        "",
        "| peer | p50 ms | p90 ms | p99 ms | reads/s | CPU of service, ms | of client |"
        " above Celery's own, ms | times Celery's own | times as fast |",
        "|---" + "|--:" * 9 + "|",
    ]
    columns = [("p50", 2, 1e3), ("p90", 2, 1e3), ("p99", 2, 1e3), ("rps", 0, 1.0)]
    columns += [("cpu_service", 2, 1e3), ("cpu_client", 2, 1e3)]
    columns += [("above", 2, 1e3), ("of_celery", 2, 1.0), ("speedup", 1, 1.0)]
    for peer in summary.peers:
        if (why := summary.missing.get((work, peer))) is not None:
            lines.append(f"| {peer} | {why} |" + " |" * 8)
        elif summary.median(work, peer) is not None:
            cells = [
                number(summary.median(work, peer, name), digits, factor)
                for name, digits, factor in columns
            ]
            lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)
