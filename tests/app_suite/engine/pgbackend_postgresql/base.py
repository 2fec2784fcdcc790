"""Where Django looks for it."""

from pgbackend.base import DatabaseWrapper as DatabaseWrapper
