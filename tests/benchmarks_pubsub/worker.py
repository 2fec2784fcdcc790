"""A process of one peer: ``python -m tests.benchmarks_pubsub.worker '{...}'``.

Its *role* is to "prepare" the tables, to "listen", to listen to "many" channels, to "send", or to
"drain". It says in a line of JSON when it is ready, and answers each line that it reads with one.
"""

import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from tests.benchmarks.worker import say
from tests.benchmarks_pubsub.peer import Peer
from tests.benchmarks_pubsub.record import Record, now


def answer_beside(peer: Peer) -> None:
    """Answer lines in a thread while the peer's worker has the main one; end with the input."""
    try:
        for line in sys.stdin:
            words = json.loads(line)
            if words["do"] == "wire":
                say({"wire": [peer.wire(number) for number in range(words["count"])]})
            else:
                say(peer.record.samples(words["since"], words["count"], words["timeout"]))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        # Not sys.exit(), which would end this thread only.
        sys.stderr.flush()
        os._exit(0)


def listen(peer: Peer, spec: dict[str, Any]) -> None:
    """Be a worker until the input ends."""
    if spec["role"] == "many":
        peer.declare(spec["channels"])
    threading.Thread(target=answer_beside, args=(peer,), daemon=True).start()
    # The rest of this process is there now; listening begins.
    say({"ready": True, "began": now()})
    if spec["role"] == "many":
        peer.listen_many()
    else:
        peer.listen(spec["kind"])


def send(peer: Peer, words: dict[str, Any]) -> dict[str, Any]:
    """Send at a pace, or as fast as writers can."""
    if "writers" in words:
        return peer.write(
            words["writers"], words["wake"], warm_up=words["warm_up"], seconds=words["seconds"]
        )
    if "wire" in words:
        vars(peer)["told"] = words["wire"]
    peer.paced(words["kind"], words["rate"], words["warm_up"])
    since = now()
    peer.paced(words["kind"], words["rate"], words["seconds"])
    return {"since": since, "count": int(words["rate"] * words["seconds"])}


def drain(peer: Peer, words: dict[str, Any]) -> dict[str, Any]:
    """Handle what is stored; what takes longer than the limit is cut off, and this process ends."""
    record = peer.record
    record.clear()
    began = now()

    def cut() -> None:
        say({**record.drained(began, now()), "size": peer.size(), "cut": True})
        os._exit(0)

    limit = threading.Timer(words["limit"], cut)
    limit.start()
    peer.drain()
    ended = now()
    limit.cancel()
    return {**record.drained(began, ended), "size": peer.size()}


def serve(peer: Peer) -> None:
    """Do what the lines say."""
    works: dict[str, Callable[[Peer, dict[str, Any]], dict[str, Any] | None]] = {
        "send": send,
        "drain": drain,
        "fill": lambda peer, words: peer.fill(words["rows"]),
        "clear": lambda peer, words: peer.clear(),
        "settle": lambda peer, words: peer.settle(),
    }
    say({"ready": True})
    for line in sys.stdin:
        words = json.loads(line)
        say(works[words["do"]](peer, words) or {"done": True})


def main() -> None:
    spec: dict[str, Any] = json.loads(sys.argv[1])
    os.environ |= {"BENCH_DSN": spec["dsn"], "BENCH_CONNECTIONS": f"{spec['connections']}"}
    os.environ |= {"BENCH_PEER": spec["peer"], "BENCH_ENGINE": spec["engine"]}
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks_pubsub.settings"
    module = importlib.import_module(spec["module"])
    peer: Peer = module.Peer(spec["dsn"], Record(), **spec["options"])
    role = spec["role"]
    if role == "prepare":
        peer.prepare()
        say(
            {
                "kinds": peer.kinds,
                "can_drain": peer.can_drain,
                "wakes": peer.wakes,
                "many": type(peer).listen_many is not Peer.listen_many,
            }
        )
    elif role in ("listen", "many"):
        listen(peer, spec)
    else:
        peer.open(spec["connections"])
        serve(peer)
    # Threads and loops of a peer do not keep the process.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
