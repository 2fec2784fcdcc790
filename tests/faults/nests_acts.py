"""The acts of the programs of `nests_program`, by one alias: what they return is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from django.db import DatabaseError, connections, transaction

from pgbackend import NotCommitted
from pgbackend.futures import future, gather
from tests.models import Author

# What is there before a program.
KEPT = ["Ada", "k1", "k2", "k3", "k4", "k5", "k6"]

INSERT = "INSERT INTO tests_author (name) VALUES (%s)"

INERROR = 3

# The outcome of a block that did not raise, and cannot be committed.
REFUSED = "refused"


class Acts:
    """What a program may do. Each method `act_...` takes a number below 1 that says how."""

    def __init__(self, alias: str, *, ours: bool) -> None:
        self.alias = alias
        self.ours = ours
        # What happened, as it is compared.
        self.log: list[Any] = []
        # The place in the log where the transaction ends, whatever its program says.
        self.ends_at = -1
        # How many blocks of `deferred_savepoint` are entered, which Django does not know.
        self.deferred = 0
        self._named = 0
        self._savepoints: list[Any] = []
        self._readers: list[Iterator[Any]] = []

    @property
    def wrapper(self) -> Any:
        return connections[self.alias]

    @property
    def raw(self) -> Any:
        """psycopg's connection."""
        self.wrapper.ensure_connection()
        return self.wrapper.connection

    @property
    def authors(self) -> Any:
        return Author.objects.using(self.alias)

    def new_name(self) -> str:
        self._named += 1
        return f"n{self._named}"

    def name_or_ada(self, x: float) -> str:
        """Return a new name, or one that is taken, seldom."""
        name = self.new_name()
        return name if x < 0.7 else "Ada"

    def old_name(self, x: float) -> str:
        return f"n{int(x * self._named)}"

    def begin(self) -> None:
        """Begin another transaction."""
        self.log.clear()
        self.ends_at = -1

    def forget(self) -> None:
        """Forget savepoints and cursors: their transaction has ended."""
        self._savepoints.clear()
        while self._readers:
            with suppress(DatabaseError):
                self._readers.pop().close()  # type: ignore[attr-defined]  # a generator

    def outcome(self, error: BaseException) -> Any:
        """Return what is compared of *error*."""
        if isinstance(error, NotCommitted) or "cannot be committed" in str(error):
            return REFUSED
        # Django's reason for refusing a statement may be missing where psycopg's errors caused it.
        refused = isinstance(error, transaction.TransactionManagementError)
        cause: Any = None if refused else error.__cause__
        diag = getattr(cause, "diag", None)
        return (
            type(error).__name__,
            getattr(cause, "sqlstate", None) or str(error)[:60],
            diag and diag.statement_position,
        )

    @property
    def is_broken(self) -> bool:
        """Whether the innermost block can only be rolled back."""
        return self.wrapper.needs_rollback or self.raw.pgconn.transaction_status == INERROR

    # The ORM's

    def act_create(self, x: float) -> Any:
        return bool(self.authors.create(name=self.new_name()).pk)

    def act_duplicate(self, x: float) -> None:
        self.authors.create(name="Ada")

    def act_too_long(self, x: float) -> None:
        self.authors.filter(name="Ada").update(name="a" * 60)

    def act_update(self, x: float) -> Any:
        return self.authors.filter(name=self.old_name(x)).update(name=self.new_name())

    def act_delete(self, x: float) -> Any:
        return self.authors.filter(name=self.old_name(x)).delete()[0]

    def act_first(self, x: float) -> Any:
        found = self.authors.filter(name="Ada").first()
        return found and found.name

    def act_count(self, x: float) -> Any:
        return self.authors.count()

    def act_names(self, x: float) -> Any:
        return sorted(self.authors.values_list("name", flat=True))

    def act_missing(self, x: float) -> None:
        self.authors.get(name="nobody")

    def act_nonsense(self, x: float) -> None:
        list(self.authors.extra(where=["nonsense (" if x < 0.5 else "nonsense = 1"]))

    def act_bulk(self, x: float) -> Any:
        names = self.new_name(), self.name_or_ada(x)
        return len(self.authors.bulk_create(Author(name=name) for name in names))

    def act_get_or_create(self, x: float) -> Any:
        return self.authors.get_or_create(name="Ada" if x < 0.5 else self.new_name())[1]

    def act_update_or_create(self, x: float) -> Any:
        changes = {"name": self.name_or_ada(x)}
        return self.authors.update_or_create(name=self.old_name(x), defaults=changes)[1]

    def act_for_update(self, x: float) -> Any:
        found = self.authors.select_for_update(nowait=x < 0.5).filter(name="Ada")
        return [author.name for author in found]

    def act_gather(self, x: float) -> Any:
        """Gather calls with savepoints: each is as in a block of its own."""
        if self.is_broken:
            return None
        calls: list[Callable[[], Any]] = [
            lambda: self.act_create(x),
            lambda: self.act_duplicate(x) if x < 0.3 else self.act_first(x),
            lambda: self.act_looked_at(x) if x < 0.5 else self.act_raw(x),
            lambda: self.act_raw_fails(x) if x > 0.7 else self.act_count(x),
        ]
        if self.ours:
            found = gather(*map(self._called, calls), savepoints=True, return_exceptions=True)
            return [
                self.outcome(each) if isinstance(each, Exception) else each
                for each in found.result()
            ]
        outcomes = []
        for call in calls:
            try:
                with transaction.atomic(using=self.alias):
                    outcomes.append(call())
            except Exception as error:
                outcomes.append(self.outcome(error))
        return outcomes

    def _called(self, call: Callable[[], Any]) -> Any:
        return future(call)()

    # Cursors'

    def act_raw(self, x: float) -> Any:
        with self.wrapper.cursor() as cursor:
            cursor.execute(INSERT, [self.new_name()])
            return cursor.rowcount

    def act_raw_fails(self, x: float) -> None:
        with self.wrapper.cursor() as cursor:
            cursor.execute("SELEC 1" if x < 0.85 else "SELECT 1/0")

    def act_many(self, x: float) -> None:
        with self.wrapper.cursor() as cursor:
            cursor.executemany(INSERT, [[self.new_name()], [self.name_or_ada(x)]])

    def act_copy(self, x: float) -> None:
        statement = "COPY tests_author (name) FROM STDIN"
        with self.wrapper.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write_row([self.name_or_ada(x)])

    def act_cursor_kept(self, x: float) -> Any:
        """Keep a cursor open around a block."""
        with self.wrapper.chunked_cursor() as cursor:
            cursor.execute("SELECT name FROM tests_author WHERE name LIKE 'k%%' ORDER BY name")
            one = cursor.fetchmany(2)
            with transaction.atomic(using=self.alias):
                two = cursor.fetchmany(2)
                if x < 0.5:
                    self.act_create(x)
            return [one, two, cursor.fetchall()]

    def act_open(self, x: float) -> Any:
        """Begin to read by a server-side cursor."""
        found = self.authors.filter(name__startswith="k").order_by("name")
        reader = iter(found.iterator(chunk_size=2))
        first = next(reader).name
        self._readers.append(reader)
        return first

    def act_next(self, x: float) -> Any:
        """Read on by the cursor that was opened last."""
        found = next(self._readers[-1], None) if self._readers else None
        return found and found.name

    def act_set_local(self, x: float) -> None:
        with self.wrapper.cursor() as cursor:
            cursor.execute("SELECT set_config('app.one', %s, true)", [str(int(x * 100))])

    def act_show(self, x: float) -> Any:
        with self.wrapper.cursor() as cursor:
            cursor.execute("SELECT current_setting('app.one', true)")
            return cursor.fetchone()[0] or None

    def act_raw_savepoint(self, x: float) -> None:
        with self.wrapper.cursor() as cursor:
            cursor.execute(
                "SAVEPOINT app" if x < 0.4 else "ROLLBACK TO app" if x < 0.7 else "RELEASE app"
            )

    def act_raw_end(self, x: float) -> None:
        if x < 0.15 and not self._readers:
            with self.wrapper.cursor() as cursor:
                cursor.execute("ROLLBACK" if x < 0.1 else "COMMIT AND CHAIN")

    def act_constraints(self, x: float) -> None:
        self.wrapper.check_constraints()

    # psycopg's

    def act_psycopg(self, x: float) -> None:
        self.raw.execute(INSERT, [self.name_or_ada(x)])

    def act_psycopg_transaction(self, x: float) -> None:
        raw = self.raw
        with raw.transaction(force_rollback=x < 0.3):
            if x < 0.8:
                raw.execute(INSERT, [self.name_or_ada(x)])

    def act_pipeline(self, x: float) -> None:
        raw = self.raw
        if raw.pgconn.transaction_status != INERROR:
            with raw.pipeline():
                raw.execute(INSERT, [self.new_name()])
                raw.execute(INSERT, [self.new_name()])

    # The transaction's

    def act_savepoint(self, x: float) -> Any:
        savepoint = self.wrapper.savepoint()
        self._savepoints.append(savepoint)
        return savepoint is None

    def act_savepoint_commit(self, x: float) -> None:
        if (savepoint := self._savepoint(x)) is not None:
            self.wrapper.savepoint_commit(savepoint)

    def act_savepoint_rollback(self, x: float) -> None:
        if (savepoint := self._savepoint(x)) is not None:
            self.wrapper.savepoint_rollback(savepoint)

    def _savepoint(self, x: float) -> Any:
        """Return a savepoint, one of the latest rather."""
        found = self._savepoints
        return found[-1 - int(x * x * len(found))] if found else None

    def act_on_commit(self, x: float) -> None:
        name = self.new_name()
        transaction.on_commit(lambda: self.log.append(("hook", name)), using=self.alias)

    def act_set_rollback(self, x: float) -> None:
        if x < 0.3 and self.wrapper.in_atomic_block:
            transaction.set_rollback(x < 0.2, using=self.alias)

    def act_looked_at(self, x: float) -> None:
        """Look at the statements of blocks."""
        with self.wrapper.execute_wrapper(look), transaction.atomic(using=self.alias):
            self.act_create(x)
            with transaction.atomic(using=self.alias):
                if x < 0.5:
                    self.act_first(x)

    def act_state(self, x: float) -> Any:
        wrapper = self.wrapper
        return (
            wrapper.in_atomic_block,
            wrapper.needs_rollback,
            wrapper.get_autocommit(),
            len(wrapper.savepoint_ids) + self.deferred,
            len(wrapper.run_on_commit),
        )


def look(execute: Callable[..., Any], *args: Any) -> Any:
    return execute(*args)


NAMES = [name.removeprefix("act_") for name in vars(Acts) if name.startswith("act_")]

# What a block of `deferred_savepoint` may hold: Django's own blocks do not report the other ways to
# fail.
OF_DEFERRED = ["create", "first", "count", "update", "bulk", "raw", "many", "psycopg", "on_commit"]

# What is drawn, the frequent ones more than once.
DRAWN = (
    NAMES + ["create"] * 4 + ["first"] * 6 + ["next", "savepoint", "savepoint_rollback", "state"]
)

# What keeps to the task that began it.
OF_THE_TASK = frozenset(
    ("psycopg", "psycopg_transaction", "pipeline", "cursor_kept", "copy", "open", "next", "gather")
)

# What enters a block of its own.
WITH_BLOCKS = frozenset(("get_or_create", "update_or_create", "gather", "looked_at"))
