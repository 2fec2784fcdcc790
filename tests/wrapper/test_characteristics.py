"""The BEGIN of a transaction that asks for more; what it does is in tests/test_isolation.py."""

from __future__ import annotations

import psycopg
import pytest

from pgbackend.wrapper.characteristics import Characteristics
from tests.support.server import Server

SERIALIZABLE = psycopg.IsolationLevel.SERIALIZABLE


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (Characteristics(), b"BEGIN READ WRITE"),
        (Characteristics(SERIALIZABLE), b"BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE"),
        (Characteristics(read_only=True), b"BEGIN READ ONLY"),
        (
            Characteristics(SERIALIZABLE, read_only=True, deferrable=True),
            b"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
        ),
        (Characteristics(deferrable=False), b"BEGIN READ WRITE NOT DEFERRABLE"),
    ],
)
def test_begin(server: Server, asked: Characteristics, text: bytes) -> None:
    """What is not asked for is as the connection is set to; the server understands the rest."""
    with psycopg.connect(server.dsn) as conn:
        conn.read_only = False
        assert asked.begin(conn) == text
        conn.read_only = None
        conn.autocommit = True
        conn.execute(asked.begin(conn))
        conn.execute("ROLLBACK")
