"""Open files of the process, however many descriptors each has."""

import os
from contextlib import suppress


def open_files() -> int:
    """Return how many files, sockets included, the process has open.

    The event loop listens to a connection's socket by a descriptor of its own.
    """
    files = set()
    for number in os.listdir("/dev/fd"):
        # One of them is that of this list.
        with suppress(OSError):
            status = os.fstat(int(number))
            files.add((status.st_dev, status.st_ino))
    return len(files)
