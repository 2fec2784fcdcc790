"""Which notifications a process is handling, in memory that its parent can read.

A listener may end its whole process: by a crash of a library in C, or since it takes all memory.
The transaction is rolled back, so the row is ready again, and would end the next process as well.
The parent sees here which row it was; see `processes`.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

# How many notifications of a process are marked at once; further ones go without.
_COUNT = 64

# The alias, by `number_of`, and the id; no id is 0.
_FORMAT = struct.Struct("qq")


def number_of(alias: str) -> int:
    """Return a number for an alias, the same in all processes."""
    return crc32(alias.encode())


class Marks:
    """The ids of the rows being handled, in a file without a name that processes share."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _COUNT * _FORMAT.size)
        self._free = list(range(0, _COUNT * _FORMAT.size, _FORMAT.size))

    @classmethod
    def make(cls) -> tuple[Marks, int]:
        """Return new marks and the descriptor to pass to the process that sets them."""
        fd, path = tempfile.mkstemp(prefix="pgbackend-pubsub-")
        os.unlink(path)
        os.truncate(fd, _COUNT * _FORMAT.size)
        return cls(fd), fd

    @contextmanager
    def one(self) -> Iterator[int | None]:
        """Take a place for one mark at a time; the value is for `set`."""
        place = self._free.pop() if self._free else None
        try:
            yield place
        finally:
            if place is not None:
                _FORMAT.pack_into(self._memory, place, 0, 0)
                self._free.append(place)

    def set(self, place: int | None, alias: str, row_id: int) -> None:
        """Mark a row as being handled."""
        if place is not None:
            _FORMAT.pack_into(self._memory, place, number_of(alias), row_id)

    def read(self) -> list[tuple[int, int]]:
        """Return the rows that are marked: `number_of` their alias, and their id."""
        return [mark for mark in _FORMAT.iter_unpack(self._memory[:]) if mark[1]]

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
