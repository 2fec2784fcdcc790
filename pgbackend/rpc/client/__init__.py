"""The plain client: querysets of another service, where neither Django nor psycopg is installed.

The names in ``__all__`` are public. docs/howto/rpc-rest-clients.md has examples.
"""

from .calls import Call
from .client import Client
from .conditions import Q, When
from .expressions import (
    Avg,
    Case,
    Count,
    Exists,
    F,
    Max,
    Min,
    OuterRef,
    StdDev,
    Subquery,
    Sum,
    Value,
    Variance,
    aggregate,
    function,
)
from .http import HttpTransport
from .querysets import Delayed, QuerySet
from .results import Row

__all__ = [
    "Avg",
    "Call",
    "Case",
    "Client",
    "Count",
    "Delayed",
    "Exists",
    "F",
    "HttpTransport",
    "Max",
    "Min",
    "OuterRef",
    "Q",
    "QuerySet",
    "Row",
    "StdDev",
    "Subquery",
    "Sum",
    "Value",
    "Variance",
    "When",
    "aggregate",
    "function",
]
