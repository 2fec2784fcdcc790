"""The SQL compilers: bridged, a statement holds its connection only from execute to fetch.

Django's own ``execute_sql`` opens the cursor before a bulk INSERT is compiled, and fetches rows in
blocks. Bridged, other tasks may wait for the connection on loan. So the statement is compiled
first, all rows are fetched at once, and the cursor is closed before the rows are converted. Chunked
reads and callers that want the cursor keep Django's way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import attrgetter
from types import FunctionType
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db.backends.postgresql import compiler as postgresql
from django.db.backends.postgresql.operations import DatabaseOperations
from django.db.models.expressions import RawSQL
from django.db.models.sql.constants import (
    CURSOR,
    GET_ITERATOR_CHUNK_SIZE,
    MULTI,
    NO_RESULTS,
    ROW_COUNT,
    SINGLE,
)

from .bridge.current import is_bridged
from .session import clean
from .session.clean import CleanSQL
from .sql import direct, originals, select_lists, statement_cache
from .sql.in_threads import is_gathered_in_thread

# Where Django prefetches over a many-to-many relation, it selects a column of the table between by
# extra SQL, under such a name.
_PREFETCH_NAME = "_prefetch_related_val_"
_COLUMN = re.compile(r'"[^"]+"\."[^"]+"')


def _djangos(execute_sql: Any) -> Any:
    """Return *execute_sql* if it is Django's own, or None if it was replaced already."""
    if type(execute_sql) is FunctionType:
        return execute_sql if execute_sql.__globals__["__name__"].startswith("django.") else None
    return None


_EXECUTE = _djangos(postgresql.SQLCompiler.execute_sql)
_INSERT = _djangos(postgresql.SQLInsertCompiler.execute_sql)

# The methods of operations that fetch returned rows, by Django's version. Replaced methods need
# Django's cursor.
_FETCHING = frozenset(
    name
    for name in (
        "fetch_returned_insert_columns",
        "fetch_returned_insert_rows",
        "fetch_returned_rows",
    )
    if hasattr(DatabaseOperations, name)
)
_fetch = attrgetter(*sorted(_FETCHING))
_FETCH = _fetch(DatabaseOperations)


class SQLCompiler(postgresql.SQLCompiler):
    """SELECT, and the base of INSERT, UPDATE, DELETE and aggregates."""

    _kept_select: select_lists.SelectList | None = None

    def compile(self, node: Any) -> Any:
        """Compile *node*, and note whether it is Django's own; see `clean`."""
        if type(node) is not RawSQL or not self._is_prefetch_column(node):
            clean.count_unclean(node)
        return super().compile(node)

    def _is_prefetch_column(self, node: RawSQL) -> bool:
        """Return whether *node* is the column by which Django assigns prefetched rows."""
        return not node.params and any(
            name.startswith(_PREFETCH_NAME) and sql == node.sql and _COLUMN.fullmatch(sql)
            for name, (sql, _) in self.query.extra_select.items()
        )

    def as_sql(self, *args: Any, **kwargs: Any) -> Any:
        """Return the statement, marked as clean if it has no SQL of the application.

        A simple statement is compiled once.
        """
        entry = None if args or kwargs else statement_cache.entry_for(self)
        if entry is None:
            return self._marked(super().as_sql, *args, **kwargs)
        found = entry.find(self)
        if found is None:
            found = self._marked(super().as_sql)
            entry.keep(self, *found)
        else:
            entry.set_select(self)
        return found

    def get_select(self, with_col_aliases: bool = False) -> Any:
        """Return the select list; that of a model's own columns is compiled once."""
        query = self.query
        if (
            with_col_aliases
            or not select_lists.selects_all_columns(query)
            or not originals.is_compiled_by_django(self)
        ):
            return super().get_select(with_col_aliases)
        select = select_lists.kept_select_list(query.model)
        if select is None:
            found = super().get_select()
            self._kept_select = select_lists.keep_select_list(query.model, found[0])
            return found
        query.get_initial_alias()
        self._kept_select = select
        return select.for_compiler(query.model)

    def get_converters(self, expressions: Any) -> Any:
        """Return the converters of values; those of a model's own columns are kept."""
        if (select := self._kept_select) is not None:
            converters = select.converters(self, expressions)
            if converters is not None:
                return converters
        return super().get_converters(expressions)

    def converters_of(self, expressions: Any) -> Any:
        """Return the converters by Django's ``get_converters()``."""
        return super().get_converters(expressions)

    def _marked(self, as_sql: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before = clean.unclean_nodes
        sql, params = as_sql(*args, **kwargs)
        if clean.unclean_nodes == before and clean.is_clean_query(self.query):
            sql = CleanSQL(sql)
        return sql, params

    def execute_sql(
        self,
        result_type: str = MULTI,
        chunked_fetch: bool = False,
        chunk_size: int = GET_ITERATOR_CHUNK_SIZE,
    ) -> Any:
        """Run the query and return what *result_type* asks for, as Django documents it."""
        if (
            chunked_fetch
            or result_type == CURSOR
            or not (is_bridged() or is_gathered_in_thread())
            # Code that replaces `execute_sql` wants to see statements.
            or postgresql.SQLCompiler.execute_sql is not _EXECUTE
        ):
            return super().execute_sql(result_type, chunked_fetch, chunk_size)
        try:
            sql, params = self.as_sql()
            if not sql:
                raise EmptyResultSet
        except EmptyResultSet:
            return iter([]) if result_type == MULTI else None
        connection = self.connection
        lease, cursor = direct.lease_or_cursor(connection, sql)
        if lease is None:
            return self._by_cursor(cursor, sql, params, result_type)
        try:
            result = direct.execute(connection, lease, sql, params)
            if result_type == ROW_COUNT:
                return direct.rowcount(result)
            if (result_type or NO_RESULTS) == NO_RESULTS:
                return None
            rows = direct.rows(connection, lease, result, 1 if result_type == SINGLE else None)
        finally:
            lease.release()
        if result_type == SINGLE:
            return rows[0][: self.col_count] if rows else None
        if self.has_extra_select:
            rows = [row[: self.col_count] for row in rows]
        return [rows] if rows else []

    def _by_cursor(self, cursor: Any, sql: str, params: Any, result_type: str) -> Any:
        """Do the part of `execute_sql` that sends the statement, by Django's *cursor*."""
        with cursor:
            cursor.execute(sql, params)
            if result_type == ROW_COUNT:
                return cursor.rowcount
            if (result_type or NO_RESULTS) == NO_RESULTS:
                return None
            if result_type == SINGLE:
                row = cursor.fetchone()
                return row[: self.col_count] if row else row
            rows = cursor.fetchall()
        if self.has_extra_select:
            rows = [row[: self.col_count] for row in rows]
        return [rows] if rows else []


class SQLInsertCompiler(postgresql.SQLInsertCompiler, SQLCompiler):
    """INSERT, with returned columns."""

    def as_sql(self) -> Any:
        """Return the statements, marked as clean if they have no SQL of the application."""
        before = clean.unclean_nodes
        statements = postgresql.SQLInsertCompiler.as_sql(self)
        if clean.unclean_nodes == before and all(map(clean.is_clean_field, self.query.fields)):
            statements = [(CleanSQL(sql), params) for sql, params in statements]
        return statements

    def execute_sql(  # type: ignore[override]  # Django's INSERT has a signature of its own
        self, returning_fields: Any = None
    ) -> list[Any]:
        """Insert and return the rows of *returning_fields*, converted; [] without them."""
        operations = self.connection.ops
        if (
            not (is_bridged() or is_gathered_in_thread())
            or postgresql.SQLInsertCompiler.execute_sql is not _INSERT
            or _fetch(type(operations)) != _FETCH
            or not _FETCHING.isdisjoint(operations.__dict__)
        ):
            return super().execute_sql(returning_fields)  # type: ignore[no-any-return]
        self.returning_fields = returning_fields
        statements = self.as_sql()
        with direct.cursor_for(self.connection, statements[0][0]) as cursor:
            for sql, params in statements:
                cursor.execute(sql, params)
            if not returning_fields:
                return []
            rows = self._returned(cursor)
        table = self.query.get_meta().db_table
        converters = self.get_converters([field.get_col(table) for field in returning_fields])
        return list(self.apply_converters(rows, converters) if converters else rows)

    def _returned(self, cursor: Any) -> Any:
        """Return the rows that an INSERT returned, by the method of this Django version."""
        operations = self.connection.ops
        if hasattr(operations, "fetch_returned_rows"):
            return operations.fetch_returned_rows(cursor, self.returning_params)
        # Django before 6.0.
        if len(self.query.objs) > 1:
            return operations.fetch_returned_insert_rows(cursor)
        return [operations.fetch_returned_insert_columns(cursor, self.returning_params)]


class SQLUpdateCompiler(postgresql.SQLUpdateCompiler, SQLCompiler):
    """UPDATE; related updates of parent tables included."""

    def as_sql(self) -> Any:
        """Return the statement, marked as clean if it has no SQL of the application.

        A simple statement is compiled once.
        """
        entry = statement_cache.entry_for_update(self)
        found = entry and entry.find(self)
        if found is None:
            sql, params = self._marked(super().as_sql)
            if not all(clean.is_clean_field(field) for field, _, _ in self.query.values):
                sql = str(sql)
            found = sql, params
            if entry is not None:
                entry.keep(self, *found)
        else:
            # Compiling gives the query its initial alias.
            self.query.get_initial_alias()
        return found


originals.compilers |= {SQLCompiler, SQLUpdateCompiler}


class SQLDeleteCompiler(postgresql.SQLDeleteCompiler, SQLCompiler):
    """DELETE."""

    def as_sql(self) -> Any:
        """Return the statement, marked as clean if it has no SQL of the application."""
        return self._marked(super().as_sql)


class SQLAggregateCompiler(postgresql.SQLAggregateCompiler, SQLCompiler):
    """Aggregates over a subquery."""

    def as_sql(self) -> Any:
        """Return the statement, marked as clean if it has no SQL of the application."""
        return self._marked(super().as_sql)
