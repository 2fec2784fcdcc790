"""What is compiled once depends on nothing but Django's own code: else it is compiled anew."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cached_property, partial
from typing import Any
from weakref import ref

import pytest
from django.contrib.postgres.fields import ArrayField
from django.db import connections, models, transaction
from django.db.backends.base.operations import BaseDatabaseOperations
from django.db.backends.postgresql import compiler as postgresql
from django.db.backends.postgresql.operations import (
    DatabaseOperations as PostgresDatabaseOperations,
)
from django.db.models import Aggregate, Count, F, Func, Q, Sum, expressions, lookups
from django.db.models.fields import related_lookups
from django.db.models.functions import Lower, Upper
from django.db.models.sql import Query, UpdateQuery, datastructures, where
from django.db.models.sql import compiler as djangos
from django.test.utils import isolate_apps, register_lookup

from pgbackend import bridged
from pgbackend.base import DatabaseWrapper
from pgbackend.operations import DatabaseOperations
from tests.models import Author, Book
from tests.support.server import Server
from tests.support.wrapper import use_wrapper

# Schemas by `quote_name`

tenant: ContextVar[str] = ContextVar("tenant", default="public")


class TenantOperations(DatabaseOperations):
    """Names tables of the schema that the context asks for."""

    def quote_name(self, name: str) -> str:
        quoted = super().quote_name(name)
        if name.startswith("tests_") and "." not in name:
            return f'"{tenant.get()}".{quoted}'
        return quoted


class AliasOperations(DatabaseOperations):
    """Names tables of the schema that is called like the alias."""

    def quote_name(self, name: str) -> str:
        quoted = super().quote_name(name)
        if name.startswith("tests_"):
            return f'"{self.connection.alias}".{quoted}'
        return quoted


class TenantWrapper(DatabaseWrapper):
    ops_class = TenantOperations


class AliasWrapper(DatabaseWrapper):
    ops_class = AliasOperations


TENANTS = ("tenant_a", "tenant_b", "tenant_c")


@pytest.fixture
def schemas(server: Server) -> Iterator[None]:
    """A schema for each tenant, with a table of authors that has the tenant's row 1."""
    for each in TENANTS:
        server.all(f"CREATE SCHEMA {each}")
        server.all(f"CREATE TABLE {each}.tests_author (LIKE public.tests_author INCLUDING ALL)")
        server.all(f"INSERT INTO {each}.tests_author VALUES (1, '{each}')")
    yield
    for each in TENANTS:
        server.all(f"DROP SCHEMA {each} CASCADE")


def rows(server: Server) -> dict[str, Any]:
    return {
        each: server.all(f"SELECT id, name FROM {each}.tests_author ORDER BY id")
        for each in TENANTS
    }


async def test_quote_name_of_a_context(server: Server, schemas: None) -> None:
    """A tenant whose schema `quote_name` takes from the context has no other's rows, ever."""
    settings = connections["default"].settings_dict
    connections["default"] = TenantWrapper(settings, "default")
    # First the public one's: what is kept for it must not be found by others.
    await Author.objects.acreate(pk=1, name="public")
    for _ in range(3):
        author = await Author.objects.aget(pk=1)
        await author.asave()
        assert [each.name async for each in Author.objects.order_by("name")] == ["public"]

    async def work(name: str) -> None:
        tenant.set(name)
        for number in range(5):
            author = await Author.objects.aget(pk=1)
            assert author.name == (name if not number else f"{name} {number}")
            assert await Author.objects.filter(name__startswith="tenant").acount() == 1
            author.name = f"{name} {number + 1}"
            await author.asave()
            assert await Author.objects.filter(pk=1).aupdate(name=author.name) == 1
            found = [each.name async for each in Author.objects.filter(pk=1).order_by("-pk")]
            assert found == [author.name]

    await asyncio.gather(*map(work, TENANTS))
    assert rows(server) == {each: [(1, f"{each} 5")] for each in TENANTS}
    assert server.all("SELECT name FROM public.tests_author") == [("public",)]


async def test_quote_name_of_an_alias(server: Server, schemas: None) -> None:
    """Aliases whose operations name different schemas have their own rows only."""
    settings = connections["default"].settings_dict
    try:
        for each in TENANTS:
            connections.settings[each] = settings
            connections[each] = AliasWrapper(settings, each)
        await Author.objects.acreate(pk=1, name="public")
        for number in range(3):
            assert (await Author.objects.aget(pk=1)).name == f"public{number * '!'}"
            for each in TENANTS:
                author = await Author.objects.using(each).aget(pk=1)
                assert author.name == f"{each}{number * '!'}"
                author.name += "!"
                await author.asave()
            author = await Author.objects.aget(pk=1)
            author.name += "!"
            await author.asave()
    finally:
        for each in TENANTS:
            del connections.settings[each]
    assert rows(server) == {each: [(1, f"{each}!!!")] for each in TENANTS}


# What a statement depends on may change later


def statement(queryset: Any = None) -> str:
    """Return the statement of a queryset, by default of one that would be kept."""
    if queryset is None:
        queryset = Author.objects.filter(pk=1).order_by("name")
    return str(queryset.all().query.get_compiler("default").as_sql()[0])


def shout(self: Any, name: str) -> str:
    return f'"{name.upper()}"'


OPERATIONS: list[type] = [BaseDatabaseOperations, PostgresDatabaseOperations, DatabaseOperations]


@pytest.mark.parametrize("cls", OPERATIONS[1:])
async def test_replaced_quote_name(monkeypatch: pytest.MonkeyPatch, cls: type) -> None:
    """A `quote_name` that is replaced on a class of operations is asked, and later no more."""

    @bridged
    def look() -> None:
        before = [statement() for _ in range(3)]
        monkeypatch.setattr(cls, "quote_name", shout)
        assert '"TESTS_AUTHOR"' in statement()
        assert '"TESTS_AUTHOR"' in statement()
        monkeypatch.undo()
        assert [statement() for _ in range(3)] == before

    await look()


@bridged
def test_quote_name_of_an_instance() -> None:
    """A `quote_name` that is replaced on a connection's operations is asked there."""
    before = [statement() for _ in range(3)]
    operations = transaction.get_connection().ops
    operations.quote_name = lambda name: shout(None, name)
    assert '"TESTS_AUTHOR"' in statement()
    del operations.quote_name
    assert [statement() for _ in range(3)] == before


@bridged
def test_operators_of_a_connection() -> None:
    """A connection's own operators are those of its statements, also where they change in place."""
    queryset = Author.objects.filter(name__iexact="ada")
    before = [statement(queryset) for _ in range(3)]
    connection = transaction.get_connection()
    connection.operators = {**connection.operators, "iexact": "ILIKE %s"}
    assert "ILIKE" in statement(queryset)
    del connection.operators
    assert [statement(queryset) for _ in range(3)] == before
    original = connection.operators["iexact"]
    connection.operators["iexact"] = "ILIKE %s"
    try:
        assert "ILIKE" in statement(queryset)
    finally:
        connection.operators["iexact"] = original
    assert [statement(queryset) for _ in range(3)] == before


class CockroachWrapper(DatabaseWrapper):
    vendor = "cockroachdb"


@bridged
def test_vendor_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper of another vendor gets the SQL that expressions have for it."""
    before = [statement() for _ in range(3)]
    connections["default"] = CockroachWrapper(connections["default"].settings_dict, "default")
    monkeypatch.setattr(
        lookups.Exact, "as_cockroachdb", lambda self, *args: ("1 = 1", []), raising=False
    )
    assert "1 = 1" in statement()
    use_wrapper()
    assert [statement() for _ in range(3)] == before


class CountingOperations(DatabaseOperations):
    """Operations with converters of their own: each value of a name is turned round."""

    def get_db_converters(self, expression: Any) -> Any:
        found = super().get_db_converters(expression)
        if expression.output_field.get_internal_type() == "CharField":
            found = [*found, lambda value, expression, connection: value[::-1]]
        return found


class ConvertingWrapper(DatabaseWrapper):
    ops_class = CountingOperations


async def test_converters_of_operations() -> None:
    """Converters of a class of operations hold for its connections only, whoever comes first."""
    await Author.objects.acreate(name="Ada")
    plain = connections["default"]
    converting = ConvertingWrapper(plain.settings_dict, "default")
    for _ in range(2):
        for wrapper, name in ((plain, "Ada"), (converting, "adA"), (plain, "Ada")):
            connections["default"] = wrapper
            for _ in range(2):
                assert (await Author.objects.aget()).name == name


async def test_converters_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converters that operations get later, on a class or an instance, are applied."""
    await Author.objects.acreate(name="Ada")

    def converters(*args: Any) -> Any:
        return [lambda value, expression, connection: str(value) * 2]

    assert (await Author.objects.aget()).name == "Ada"
    with monkeypatch.context() as patch:
        patch.setattr(BaseDatabaseOperations, "get_db_converters", converters)
        assert (await Author.objects.aget()).name == "AdaAda"
    assert (await Author.objects.aget()).name == "Ada"
    operations = transaction.get_connection().ops
    operations.get_db_converters = converters
    assert (await Author.objects.aget()).name == "AdaAda"
    del operations.get_db_converters
    assert (await Author.objects.aget()).name == "Ada"


# Fields


class NameField(models.CharField):
    """A field that a test changes."""


class DoubledCol(expressions.Col):
    """A column whose values are there twice."""

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        sql, params = super().as_sql(compiler, connection)
        return f"repeat({sql}, 2)", params


# What a field may say, so that its column's values are there twice.
CHANGES: dict[str, Any] = {
    "from_db_value": lambda field, value, expression, connection: value * 2,
    "get_db_converters": lambda field, connection: [lambda value, *args: value * 2],
    "select_format": lambda field, compiler, sql, params: (f"repeat({sql}, 2)", params),
    "get_col": lambda field, alias, output_field=None: DoubledCol(alias, field),
}


def in_class(field: Any, name: str) -> Callable[[], None]:
    cls = type(field)
    setattr(cls, name, lambda *args, **kwargs: CHANGES[name](*args, **kwargs))
    return lambda: delattr(cls, name)


def in_instance(field: Any, name: str) -> Callable[[], None]:
    setattr(field, name, partial(CHANGES[name], field))
    return lambda: delattr(field, name)


@isolate_apps("tests")
def named(field: Any) -> Any:
    """Return a model for the authors' table whose `name` is a *field*."""

    class Named(models.Model):
        name = field

        class Meta:
            app_label = "tests"
            db_table = "tests_author"

    return Named


@pytest.mark.parametrize("where_from", [in_class, in_instance])
@pytest.mark.parametrize("name", CHANGES)
async def test_field_that_changes(name: str, where_from: Any) -> None:
    """What a field's class or the field itself says later is asked for, until it is gone again."""
    await Author.objects.acreate(name="Ada")
    model = named(NameField(max_length=50))
    field = model._meta.get_field("name")

    async def names() -> list[str]:
        return [
            (await model._base_manager.aget()).name,
            (await model._base_manager.aget(pk=1)).name,
            (await model._base_manager.order_by("name").alast()).name,
        ]

    for _ in range(2):
        assert await names() == ["Ada"] * 3
        undo = where_from(field, name)
        try:
            assert await names() == ["AdaAda"] * 3
            assert await names() == ["AdaAda"] * 3
        finally:
            undo()
    assert await names() == ["Ada"] * 3


@pytest.mark.parametrize("name", CHANGES)
async def test_field_of_a_class_of_its_own(name: str) -> None:
    """A field class of the application's is asked each time, whatever the connection says."""
    cls = type("OwnField", (models.CharField,), {})
    setattr(cls, name, lambda *args, **kwargs: CHANGES[name](*args, **kwargs))
    model = named(cls(max_length=50))
    await Author.objects.acreate(name="Ada")
    for _ in range(3):
        assert (await model._base_manager.aget(pk=1)).name == "AdaAda"


current: ContextVar[int] = ContextVar("current", default=1)


class ContextField(models.CharField):
    """Depends on the connection's alias and a context variable, in each place."""

    def select_format(self, compiler: Any, sql: str, params: Any) -> Any:
        return f"repeat({sql}, {current.get()})", params

    def get_db_converters(self, connection: Any) -> Any:
        alias = connection.alias
        return [lambda value, expression, connection: f"{alias}:{value}"]


async def test_field_that_depends_on_the_context() -> None:
    """A field that depends on the connection and a context variable is asked each time."""
    await Author.objects.acreate(name="Ada")
    model = named(ContextField(max_length=50))
    for number in (1, 2, 1, 3):
        current.set(number)
        for _ in range(2):
            assert (await model._base_manager.aget(pk=1)).name == "default:" + "Ada" * number


@pytest.mark.parametrize("name", ["from_db_value", "get_db_converters", "select_format"])
async def test_key_that_changes(name: str) -> None:
    """What the key that a foreign key refers to says later is asked for, too."""

    class KeyField(models.BigIntegerField):
        pass

    @isolate_apps("tests")
    def make() -> Any:
        class Owner(models.Model):
            id = KeyField(primary_key=True)

            class Meta:
                app_label = "tests"
                db_table = "tests_author"

        class Owned(models.Model):
            author = models.ForeignKey(Owner, models.CASCADE)

            class Meta:
                app_label = "tests"
                db_table = "tests_book"

        return Owned

    model = make()
    await Book.objects.acreate(author=await Author.objects.acreate(pk=7, name="Ada"))
    says = {
        "from_db_value": lambda self, value, expression, connection: value * 2,
        "get_db_converters": lambda self, connection: [lambda value, *args: value * 2],
        "select_format": lambda self, compiler, sql, params: (f"{sql} * 2", params),
    }[name]
    for _ in range(2):
        assert (await model._base_manager.aget()).author_id == 7
    setattr(KeyField, name, says)
    for _ in range(2):
        assert (await model._base_manager.aget()).author_id == 14
    delattr(KeyField, name)
    assert (await model._base_manager.aget()).author_id == 7


async def test_renamed_column(server: Server) -> None:
    """A column that is renamed in place is asked for, filtered and set by its new name."""
    await Author.objects.acreate(name="Ada")
    model = named(models.CharField(max_length=50))
    field = model._meta.get_field("name")
    manager = model._base_manager
    for _ in range(2):
        assert (await manager.aget(name="Ada")).name == "Ada"
    server.all("ALTER TABLE tests_author RENAME COLUMN name TO called")
    field.column = "called"
    # What Django keeps of it, a migration makes anew.
    try:
        for _ in range(2):
            row = await manager.aget(name="Ada")
            assert row.name == "Ada"
            await row.asave()
            assert [each.name async for each in manager.order_by("name")] == ["Ada"]
    finally:
        server.all("ALTER TABLE tests_author RENAME COLUMN called TO name")
    field.column = "name"
    assert (await manager.aget(name="Ada")).name == "Ada"


@isolate_apps("tests")
def two_fields_of_a_column() -> Any:
    class Twice(models.Model):
        number = models.BigIntegerField(db_column="id")
        address = models.GenericIPAddressField(db_column="name")
        name = models.CharField(max_length=50, db_column="name")

        class Meta:
            app_label = "tests"
            db_table = "tests_author"

    return Twice


@bridged
def test_two_fields_of_a_column() -> None:
    """Lookups of two fields of one column are those of each field."""
    model = two_fields_of_a_column()
    for _ in range(3):
        by_address, by_name = (
            statement(model._base_manager.filter(**{f"{name}__icontains": "1"}))
            for name in ("address", "name")
        )
        assert "HOST(" in by_address
        assert "HOST(" not in by_name


async def test_array_of_values() -> None:
    """Two arrays in one model are converted as the fields in them are."""

    class Word(models.TextField):
        def from_db_value(self, value: Any, expression: Any, connection: Any) -> str:
            return f"<{value}>"

    @isolate_apps("tests")
    def make() -> Any:
        class Arrays(models.Model):
            plain = ArrayField(models.TextField())
            words = ArrayField(Word())

            class Meta:
                app_label = "tests"

        return Arrays

    model = make()

    @bridged
    def look() -> None:
        connection = transaction.get_connection()
        with connection.schema_editor() as editor:
            editor.create_model(model)
        try:
            model._base_manager.create(plain=["a"], words=["b"])
            for _ in range(3):
                row = model._base_manager.get()
                assert (row.plain, row.words) == (["a"], ["<b>"])
        finally:
            with connection.schema_editor() as editor:
                editor.delete_model(model)

    await look()


# Ordering


@bridged
def test_transforms_of_an_ordering() -> None:
    """A transform that is registered later, or in place of another, is what orders."""
    queryset = Author.objects.order_by("name__shout")
    for transform in (Upper, Lower, Upper):
        with register_lookup(models.CharField, transform, lookup_name="shout"):
            for _ in range(3):
                assert f"{transform.function}(" in statement(queryset)
        with pytest.raises(Exception, match="shout"):
            statement(queryset)


@bridged
def test_ordering_of_a_related_model() -> None:
    """To order by a relation is to order as its model is ordered now."""
    queryset = Book.objects.order_by("author")
    by_key = [statement(queryset) for _ in range(3)]
    before = Author._meta.ordering
    try:
        Author._meta.ordering = ["-name"]
        assert '"tests_author"."name" DESC' in statement(queryset)
    finally:
        Author._meta.ordering = before
    assert [statement(queryset) for _ in range(3)] == by_key


# Expressions and compilers


@pytest.mark.parametrize(
    "cls", [lookups.Exact, lookups.IntegerFieldExact, lookups.Lookup, lookups.BuiltinLookup]
)
async def test_as_postgresql_of_a_lookup(monkeypatch: pytest.MonkeyPatch, cls: type) -> None:
    """A lookup's ``as_postgresql`` that is added later is what is compiled."""

    @bridged
    def look() -> None:
        before = [statement() for _ in range(3)]
        monkeypatch.setattr(cls, "as_postgresql", lambda self, *args: ("1 = 1", []), raising=False)
        assert statement().count("1 = 1") == 1
        monkeypatch.undo()
        assert [statement() for _ in range(3)] == before

    await look()


@pytest.mark.parametrize("cls", [expressions.Col, expressions.Expression, expressions.Combinable])
async def test_as_postgresql_of_a_column(monkeypatch: pytest.MonkeyPatch, cls: type) -> None:
    """A column's ``as_postgresql`` that is added later is what is compiled."""

    def as_postgresql(self: Any, compiler: Any, connection: Any) -> Any:
        sql, params = self.as_sql(compiler, connection)
        return f"({sql})", params

    @bridged
    def look() -> None:
        before = [statement() for _ in range(3)]
        monkeypatch.setattr(cls, "as_postgresql", as_postgresql, raising=False)
        assert '("tests_author"."name")' in statement()
        monkeypatch.undo()
        assert [statement() for _ in range(3)] == before

    await look()


@bridged
def test_as_sql_of_one_lookup() -> None:
    """A lookup whose own ``as_sql`` was replaced is compiled by it."""
    for name in ("as_sql", "as_postgresql"):
        queryset = Author.objects.filter(pk=1)
        before = [statement(queryset) for _ in range(3)]
        setattr(queryset.query.where.children[0], name, lambda *args: ("1 = 1", []))
        assert "1 = 1" in str(queryset.query.get_compiler("default").as_sql()[0])
        queryset = Author.objects.filter(pk=1)
        setattr(queryset.query.where, name, lambda *args: ("1 = 1", []))
        assert "1 = 1" in str(queryset.query.get_compiler("default").as_sql()[0])
        assert [statement(Author.objects.filter(pk=1)) for _ in range(3)] == before


# Every function of Django's that compiles what is kept


CLASSES: list[type] = [
    djangos.SQLCompiler,
    djangos.SQLUpdateCompiler,
    postgresql.SQLCompiler,
    *OPERATIONS,
    Query,
    UpdateQuery,
    where.WhereNode,
    datastructures.BaseTable,
    expressions.Col,
    expressions.BaseExpression,
    expressions.OrderBy,
    expressions.Star,
    expressions.Value,
    djangos.PositionRef,
    Aggregate,
    Count,
    Func,
    Sum,
    models.Field,
    models.CharField,
    models.BigAutoField,
    models.IntegerField,
    models.ForeignKey,
    *{
        cls
        for lookup in (
            lookups.IntegerFieldExact,
            lookups.IntegerGreaterThanOrEqual,
            lookups.IContains,
            lookups.IsNull,
            related_lookups.RelatedExact,
            related_lookups.RelatedIn,
        )
        for cls in lookup.__mro__
        if cls.__module__.startswith("django.db.models.") and "lookups" in cls.__module__
    },
]

# These make no SQL of what is kept themselves: they copy, look at the query's own parts, or are
# called by what is looked at among the others.
HARMLESS = {
    # A collection of garbage calls it, whatever is compiled meanwhile.
    "BaseDatabaseOperations.__del__",
    "BaseExpression.__getstate__",
    "BaseExpression.__init__",
    "BaseExpression.contains_aggregate",
    "BaseExpression.contains_over_clause",
    "BaseExpression.copy",
    "BaseExpression.get_source_expressions",
    "BaseExpression.resolve_expression",
    "BaseExpression.set_source_expressions",
    "BaseTable.__init__",
    "BigAutoField.get_internal_type",
    "BuiltinLookup.get_rhs_op",
    "Col.__init__",
    "Field.__eq__",
    "Field.__hash__",
    "Field.get_internal_type",
    "ForeignKey.target_field",
    "Lookup.get_source_expressions",
    "Lookup.rhs_is_direct_value",
    "OrderBy.__init__",
    "OrderBy.get_source_expressions",
    "OrderBy.set_source_expressions",
    "PositionRef.__init__",
    "Query.annotation_select",
    "Query.base_table",
    "Query.count_active_tables",
    "Query.extra_select",
    "Query.get_compiler",
    "Query.get_initial_alias",
    "Query.get_select_mask",
    "Query.join",
    "Query.join_parent_model",
    "Query.names_to_path",
    "Query.ref_alias",
    "Query.reset_refcounts",
    "Query.setup_joins",
    "Query.trim_joins",
    "Query.unref_alias",
    "SQLCompiler.__init__",
    "SQLCompiler._order_by_pairs",
    "SQLCompiler._setup_joins",
    "SQLCompiler.get_default_columns",
    "SQLCompiler.get_distinct",
    "SQLCompiler.get_extra_select",
    "SQLCompiler.get_group_by",
    "SQLCompiler.get_select_for_update_of_arguments",
    "SQLCompiler.setup_query",
    "WhereNode.contains_aggregate",
    "WhereNode.contains_over_clause",
    "WhereNode.split_having_qualify",
}


def kinds() -> dict[str, Callable[[], Any]]:
    """Return what compiles a statement of each kind that is kept, by name."""

    def selects() -> Any:
        queryset = Book.objects.filter(Q(price__gte=3) | ~Q(title__icontains="x"), author=3)
        return queryset.filter(published__isnull=True, pk=1).order_by(
            "title", "-price", "author_id"
        )

    def update() -> Any:
        query = Book.objects.filter(pk=1).query.chain(UpdateQuery)
        query.add_update_values({"title": "x", "price": 3, "author_id": 4})
        return query.get_compiler("default")

    def lists(**values: Any) -> Any:
        return Book.objects.filter(**values).query.get_compiler("default").as_sql()

    def of(query: Any) -> Any:
        return query.get_compiler("default").as_sql()

    def aggregate() -> Any:
        query = Book.objects.filter(price=3).query
        query.select, query.default_cols = (), False
        query.clear_ordering(force=True)
        query.add_annotation(Sum("price"), "total")
        query.add_annotation(Count("*"), "number")
        return query

    return {
        "exists": lambda: of(Book.objects.filter(author=3).query.exists()),
        "aggregate": lambda: of(aggregate()),
        "values": lambda: of(selects().values("title", "author").query),
        "values_list": lambda: of(selects().values_list("pk", flat=True)[2:5].query),
        "keys": lambda: lists(pk__in=[1, 2, 3]),
        "foreign keys": lambda: lists(author__in=[1, 2, 3]),
        "select": lambda: selects().query.get_compiler("default").as_sql(),
        "slice": lambda: selects()[2:5].query.get_compiler("default").as_sql(),
        "lock": lambda: selects().select_for_update().query.get_compiler("default").as_sql(),
        "update": lambda: update().as_sql(),
    }


def functions_of(compile_it: Callable[[], Any]) -> list[list[tuple[type, str]]]:
    """Return what of `CLASSES` Django runs to compile a statement: where each function stands."""
    places: dict[Any, list[tuple[type, str]]] = {}
    for cls in CLASSES:
        for name, value in vars(cls).items():
            code = getattr(plain(value), "__code__", None)
            places.setdefault(code, []).append((cls, name))
    ran: set[Any] = set()

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            ran.add(frame.f_code)

    sys.setprofile(note)
    try:
        compile_it()
    finally:
        sys.setprofile(None)
    return [found for code, found in places.items() if code in ran]


def plain(value: Any) -> Any:
    """Return the function in a property, or *value* itself."""
    return getattr(value, "func", getattr(value, "fget", value))


def counting(value: Any, called: list[str]) -> Any:
    """Return a method, or a property, that does what *value* does and notes that it was called."""
    function = plain(value)

    def method(*args: Any, **kwargs: Any) -> Any:
        called.append(function.__name__)
        return function(*args, **kwargs)

    if function is value:
        return method
    if isinstance(value, property):
        return property(method)
    # What an instance was given stands before this one, too.
    cached = cached_property(method)
    cached.__set_name__(type(None), function.__name__)
    return cached


@pytest.mark.parametrize("kind", kinds())
async def test_every_function_that_compiles(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever function of Django's is replaced that compiles what is kept, it is called."""

    @bridged
    def look() -> set[str]:
        compile_it = kinds()[kind]
        unseen: set[str] = set()
        vars(Book._meta).pop("_pgbackend_select", None)
        statement(Book.objects.all())
        with transaction.atomic():
            compile_it()
            assert len(Book._meta._pgbackend_select.statements) > 0
            with monkeypatch.context() as patch:
                # Nothing kept is used where a class of operations is the application's.
                patch.setattr(transaction.get_connection().ops, "quote_name", '"{}"'.format)
                functions = functions_of(compile_it)
            assert len(functions) > 30
            for places in functions:
                for _ in range(3):
                    compile_it()
                called: list[str] = []
                with monkeypatch.context() as patch:
                    for cls, name in places:
                        patch.setattr(cls, name, counting(vars(cls)[name], called))
                    compile_it()
                if not called:
                    unseen.add(f"{cls.__name__}.{name}")
        return unseen

    assert await look() - HARMLESS == set()


# Models


def statements_of(model: Any) -> None:
    """Run statements of a model for the authors' table, kept ones among them."""
    manager = model._base_manager
    for _ in range(2):
        row = manager.get(pk=1)
        row.save()
        list(manager.filter(name__contains="a").order_by("name"))
        manager.filter(pk=1).update(name=F("name"))
        manager.filter(pk=1).update(name="Ada")


async def test_models_are_not_kept_alive() -> None:
    """Models that were made for a while are collected, whatever ran on them."""
    await Author.objects.acreate(name="Ada")

    @bridged
    def make() -> list[Any]:
        found = []
        for _ in range(200):
            # A class of fields Django itself remembers, with its lookups.
            model = named(NameField(max_length=50))
            statements_of(model)
            found.append(ref(model))
        return found

    made = await make()
    gc.collect()
    assert [each() for each in made if each() is not None] == []
