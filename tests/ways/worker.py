"""A process that makes the calls when it is asked to, with the package of its PYTHONPATH.

For each line ``name|number`` on its standard input it prints the CPU of one such call, in
microseconds. ``name|0`` asks for its way instead.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import django
from django.conf import settings

# Calls before the first that counts.
WARM_UP = 300


async def main() -> None:
    from tests.ways.calls import MORE, THREE, drop_table, follow, make_table

    await make_table()
    try:
        for call in THREE.values():
            for _ in range(WARM_UP):
                await call()
        print("ready", flush=True)
        for line in sys.stdin:
            name, number = line.rstrip("\n").split("|")
            call, times = {**THREE, **MORE}[name], int(number)
            if not times:
                print(json.dumps(await follow(call)), flush=True)
                continue
            began = time.process_time()
            for _ in range(times):
                await call()
            print((time.process_time() - began) / times * 1e6, flush=True)
    finally:
        await drop_table()


if __name__ == "__main__":
    settings.configure(
        DATABASES={"default": {"ENGINE": "pgbackend", **json.loads(sys.argv[1])}},
        INSTALLED_APPS=["pgbackend"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()
    asyncio.run(main())
