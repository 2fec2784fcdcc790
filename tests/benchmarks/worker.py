"""The process of one peer doing one work: ``python -m tests.benchmarks.worker '{...}'``.

It runs in the peer's own environment, and prints what it measured as its last line, in JSON.
"""

import importlib
import json
import sys
from typing import Any


def memory(field: str) -> int | None:
    """Return VmRSS or VmHWM of this process, bytes; None where there is no /proc."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass
    return None


def main() -> None:
    spec: dict[str, Any] = json.loads(sys.argv[1])
    # First of all: gevent's replaces parts of the standard library.
    module = importlib.import_module(spec["module"])
    peer = module.Peer(spec["dsn"], spec["pool"], **spec["options"])
    if not hasattr(peer, spec["operation"]):
        print(json.dumps({"unsupported": True}))
        return
    memories: dict[str, int | None] = {}

    def warm() -> None:
        memories["memory_before"] = memory("VmRSS")

    window = peer.run(spec, warm)
    figures = window.figures(spec["repeat"] * spec["queries"])
    figures |= memories | {"memory_peak": memory("VmHWM")}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
