"""An advisory lock that the server's own session holds, and statements that wait for it."""

# Held by the server's own session; whoever asks for it waits.
GATE = 4711


WAITS = f"SELECT pg_advisory_xact_lock({GATE})"
