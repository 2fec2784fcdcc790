"""The database engine "pgbackend.rpc": an alias whose database is another service."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from django.db import NotSupportedError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.client import BaseDatabaseClient
from django.db.backends.base.creation import BaseDatabaseCreation
from django.db.backends.base.features import BaseDatabaseFeatures
from django.db.backends.base.introspection import BaseDatabaseIntrospection
from django.db.backends.base.operations import BaseDatabaseOperations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.base.validation import BaseDatabaseValidation
from django.db.transaction import TransactionManagementError

from .cursor import RpcCursor
from .protocol import nodes
from .protocol.messages import writes
from .raising import raised
from .results import RpcFuture
from .service import Service, service_of

logger = logging.getLogger("pgbackend.rpc")


def no_sql(*_args: Any, **_options: Any) -> Any:
    """Raise: a service takes no SQL."""
    raise NotSupportedError(
        "the alias is one of a service (ENGINE pgbackend.rpc), which takes no SQL: use the"
        " querysets of an RpcModel, or cursor().gather(...)"
    )


def nothing(*_args: Any, **_options: Any) -> None:
    """Do nothing: a service has no tables here, and no connection to look after."""


def unguarded(name: str) -> Any:
    """Return a method of Django's wrapper without its guard against event loops.

    Blocks of `atomic` call these, in bridged code, too, and nothing here waits for a database.
    """
    return getattr(BaseDatabaseWrapper, name).__wrapped__


class DatabaseFeatures(BaseDatabaseFeatures):
    """A service has neither transactions nor tables here; each message is a transaction there."""

    supports_transactions = False
    uses_savepoints = False
    supports_ignore_conflicts = True
    supports_update_conflicts = True
    supports_update_conflicts_with_target = True
    can_return_rows_from_bulk_insert = True
    has_bulk_insert = True
    minimum_database_version = None


class DatabaseOperations(BaseDatabaseOperations):
    quote_name = no_sql
    compiler_module = "django.db.models.sql.compiler"

    def compiler(self, compiler_name: str) -> Any:
        no_sql()

    def sql_flush(self, *_args: Any, **_options: Any) -> list[str]:
        return []

    def execute_sql_flush(self, sql_list: list[str]) -> None:
        nothing()


class DatabaseClient(BaseDatabaseClient):
    runshell = no_sql


class DatabaseIntrospection(BaseDatabaseIntrospection):
    """A service shows no tables: `describe` says what it exposes."""

    def get_table_list(self, cursor: Any) -> list[Any]:
        return []

    def get_sequences(self, cursor: Any, table_name: str, table_fields: Any = ()) -> list[Any]:
        return []

    get_table_description = no_sql
    get_relations = no_sql
    get_constraints = no_sql


class DatabaseCreation(BaseDatabaseCreation):
    """A test run uses the service as it is: there is nothing to create or to destroy."""

    def create_test_db(self, *_args: Any, **_options: Any) -> str:
        return str(self.connection.settings_dict["NAME"])

    def clone_test_db(self, *_args: Any, **_options: Any) -> None:
        nothing()

    def get_test_db_clone_settings(self, suffix: str) -> dict[str, Any]:
        return dict(self.connection.settings_dict)

    def destroy_test_db(self, *_args: Any, **_options: Any) -> None:
        nothing()

    def serialize_db_to_string(self) -> str:
        return "[]"

    def deserialize_db_from_string(self, data: str) -> None:
        nothing()

    def test_db_signature(self) -> tuple[Any, ...]:
        # Each alias is a service of its own, and none is the default database.
        return ("pgbackend.rpc", self.connection.alias)


class DatabaseSchemaEditor(BaseDatabaseSchemaEditor):
    execute = no_sql


class DatabaseValidation(BaseDatabaseValidation):
    def check(self, **kwargs: Any) -> list[Any]:
        from .checks import check_settings

        return check_settings(self.connection)


class DatabaseWrapper(BaseDatabaseWrapper):
    """What Django calls a connection. It holds none: `service` has one transport for a process.

    `transaction.atomic` of this alias makes no transaction. Each message is one in the service, and
    is sent at once: what was written stays written when the block is left with an exception, which
    then has a note of it. With ``"ATOMIC": "refuse"`` the second message that writes in a block
    raises TransactionManagementError. ``cursor().gather(..., atomic=True)`` sends several calls as
    one transaction.
    """

    vendor = "rpc"
    # The futures of calls switch away in bridged code: the alias keeps no request in a thread.
    waits_in_bridge = True
    display_name = "RPC"
    data_types: dict[str, str] = {}  # noqa: RUF012  # as Django's
    operators: dict[str, str] = {}  # noqa: RUF012  # as Django's
    SchemaEditorClass = DatabaseSchemaEditor
    client_class = DatabaseClient
    creation_class = DatabaseCreation
    features_class = DatabaseFeatures
    introspection_class = DatabaseIntrospection
    ops_class = DatabaseOperations
    validation_class = DatabaseValidation

    def __init__(self, settings_dict: dict[str, Any], alias: str = "rpc") -> None:
        super().__init__(settings_dict, alias)
        # There is never anything open.
        self.autocommit = True
        # The messages that wrote in the outermost `atomic` block.
        self._written = 0

    @property
    def service(self) -> Service:
        """The way to the service, which all threads of the process share."""
        return service_of(self.alias, self.settings_dict)

    def future(
        self,
        tree: nodes.Tree,
        *,
        convert: Callable[[Any], Any],
        model: Any,
        urgent: bool = False,
        within: float | None = None,
    ) -> RpcFuture[Any]:
        """Return the future of a call, which is sent when its result is first wanted."""
        made: RpcFuture[Any] = RpcFuture(start=self._start, on_cancel=lambda: _cancel(made))
        made.database, made.tree, made.convert = self.alias, tree, convert
        made.failed = lambda error: raised(error, model)
        made.urgent, made.within, made.batch = urgent, within, None
        return made

    def _start(self, future: Any) -> None:
        self.send([future])

    def send(self, futures: Any, **options: Any) -> None:
        """Send calls that were claimed as one message."""
        # Django's test cases forbid connect() where a test must not use the alias.
        self.connect()
        calls = list(futures)
        if self.in_atomic_block and any(writes(each.tree) for each in calls):
            if self._written and self.settings_dict.get("ATOMIC") == "refuse":
                error = TransactionManagementError(
                    "a second message that writes, within atomic() of an alias of a service: each"
                    " message is a transaction of its own there. Send the calls in one message:"
                    f" connections[{self.alias!r}].cursor().gather(..., atomic=True)"
                )
                for each in calls:
                    each.set_exception(error)
                return
            self._written += 1
        began = time.monotonic()
        self.service.send(calls, **options)
        if self.queries_logged:
            words = "; ".join(_shown(each.tree) for each in calls)
            self.queries_log.append({"sql": words, "time": f"{time.monotonic() - began:.3f}"})

    # Django's methods

    def connect(self) -> None:
        """Do nothing: the transport connects when a message is sent."""

    def ensure_connection(self) -> None:
        """Do nothing: the transport connects when a message is sent."""

    def cursor(self) -> RpcCursor:
        """Return what sends several calls as one message."""
        return RpcCursor(self)

    commit = unguarded("commit")
    rollback = unguarded("rollback")
    close = unguarded("close")
    savepoint = unguarded("savepoint")
    savepoint_commit = unguarded("savepoint_commit")
    savepoint_rollback = unguarded("savepoint_rollback")
    clean_savepoints = unguarded("clean_savepoints")

    chunked_cursor = cursor
    create_cursor = no_sql
    get_new_connection = no_sql

    def get_connection_params(self) -> dict[str, Any]:
        return {}

    def get_database_version(self) -> tuple[int, ...]:
        return ()

    def init_connection_state(self) -> None:
        nothing()

    def is_usable(self) -> bool:
        return True

    def _set_autocommit(self, autocommit: bool) -> None:
        self._written = 0

    def _commit(self) -> None:
        nothing()

    def _close(self) -> None:
        nothing()

    def _rollback(self) -> None:
        """Say loudly that nothing is undone."""
        if not self._written:
            return
        words = (
            f"{self._written} message(s) that wrote to {self.alias!r} within atomic() stay: an"
            " alias of a service has no transactions, see gather(..., atomic=True)"
        )
        error = sys.exception()
        if error is not None:
            error.add_note(words)
        logger.error(words)


def _cancel(future: RpcFuture[Any]) -> None:
    if future.batch is not None:
        future.batch.cancel()


def _shown(tree: nodes.Tree) -> str:
    end = "" if tree.end is None else f".{tree.end.name}()"
    return f"{tree.model}{''.join(f'.{op.name}()' for op in tree.ops)}{end}"
