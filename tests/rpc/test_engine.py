"""The engine without a message: what needs SQL raises, what a project does to all aliases does
nothing, migrations leave the models out, and `atomic` says what it cannot do."""

import io
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import NotSupportedError, connections, models, router, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState
from django.test import override_settings
from django.test.utils import get_unique_databases_and_mirrors, isolate_apps

from pgbackend import bridged
from pgbackend.rpc import RemoteError, RpcModel
from pgbackend.rpc.autodetector import RpcAutodetector
from tests.models import Author
from tests.rpc.waiter.models import ClientModel, Dish, Order, Station, Tag, Waiter
from tests.support.rpc import alias


@pytest.mark.parametrize(
    "call",
    [
        lambda wrapper: wrapper.cursor().execute("SELECT 1"),
        lambda wrapper: wrapper.cursor().executemany("SELECT 1", []),
        lambda wrapper: wrapper.ops.quote_name("x"),
        lambda wrapper: wrapper.ops.compiler("SQLCompiler"),
        lambda wrapper: wrapper.client.runshell([]),
        lambda wrapper: wrapper.introspection.get_table_description(None, "x"),
        lambda wrapper: list(Author.objects.using(wrapper.alias)),
    ],
)
def test_no_sql(nowhere: str, call: Callable[[Any], Any]) -> None:
    """Whatever needs SQL raises an error that names what to use instead."""
    with pytest.raises(NotSupportedError, match="gather"):
        call(connections[nowhere])


def test_commands_do_nothing(nowhere: str) -> None:
    """Commands and a test run that go through all aliases find nothing to do."""
    out = io.StringIO()
    call_command("migrate", database=nowhere, stdout=out)
    assert out.getvalue() == "rpc is a service: it has no migrations here.\n"
    call_command("flush", database=nowhere, interactive=False, stdout=out)
    call_command("inspectdb", database=nowhere, stdout=out)
    call_command("createcachetable", database=nowhere, stdout=out)
    wrapper = connections[nowhere]
    signatures = [key for key, _ in get_unique_databases_and_mirrors()[0].items()]
    assert ("pgbackend.rpc", nowhere) in signatures
    assert wrapper.creation.create_test_db(verbosity=1) == ""
    wrapper.creation.clone_test_db("1")
    wrapper.creation.deserialize_db_from_string(wrapper.creation.serialize_db_to_string())
    wrapper.creation.destroy_test_db("", verbosity=1)
    assert wrapper.introspection.table_names() == []
    wrapper.close()


def test_routes(nowhere: str) -> None:
    """A model of a service, and the one between two of them, goes to the service alone."""
    between = Dish.labels.through
    for model in (Dish, Tag, between):
        assert router.db_for_read(model) == router.db_for_write(model) == "rpc"
        for name in (nowhere, "default", "other"):
            assert not router.allow_migrate_model(name, model)
    assert router.db_for_read(Author) == "default"
    assert router.allow_migrate_model("default", Author)
    assert not router.allow_migrate_model(nowhere, Author)
    assert router.allow_relation(Dish(), Tag())
    assert not router.allow_relation(Dish(), Author())


def test_two_services() -> None:
    """Each model goes to the service that its class names."""
    with isolate_apps("tests.rpc.waiter"):

        class Elsewhere(RpcModel):
            class Rpc:
                app_label = "shop"
                database = "other_rpc"

        class Derived(Elsewhere):
            class Meta:
                abstract = True
                app_label = "rpc_waiter"

            class Rpc:
                name = "Shelf"

        class Concrete(Derived):
            class Meta:
                app_label = "rpc_waiter"

        assert router.db_for_read(Elsewhere) == "other_rpc"
        assert Elsewhere.Rpc.label == "shop.Elsewhere"
        assert Concrete.Rpc.label == "shop.Shelf"
        assert router.db_for_write(Concrete) == "other_rpc"
        assert not Concrete._meta.managed


def test_classes() -> None:
    """What a class cannot mean is refused when it is made."""
    with isolate_apps("tests.rpc.waiter"):
        with pytest.raises(ImproperlyConfigured, match=r"Meta\.managed"):

            class Managed(RpcModel):
                class Meta:
                    managed = True

        with pytest.raises(ImproperlyConfigured, match="databse"):

            class Misspelt(RpcModel):
                class Rpc:
                    databse = "rpc"

        class Renamed(RpcModel):
            """Its relations have the names of the service's model."""

            to = models.ForeignKey("self", models.CASCADE)
            many = models.ManyToManyField(Station)
            one = models.OneToOneField(Waiter, models.CASCADE)
            word = models.CharField(max_length=3)
            kept = models.CharField(max_length=3)

            class Rpc:
                name = "Real"
                fields = ("word", "to")
                readonly = ("kept",)

        assert Renamed.Rpc.fields == ("word", "to_id")
        assert Renamed._meta.get_field("to").related_query_name() == "real"
        ways_back = {
            name: Renamed._meta.get_field(name).remote_field.get_accessor_name()
            for name in ("to", "many", "one")
        }
        assert ways_back == {"to": "real_set", "many": "real_set", "one": "real"}


def test_no_migrations() -> None:
    """No migration is made of models of services, on any version, and none deletes an old one."""
    state = ProjectState.from_apps(Dish._meta.apps)
    label = "rpc_waiter"
    assert (label, "dish") in state.models
    loader = MigrationLoader(None, ignore_no_migrations=True)
    empty = ProjectState(real_apps=set())
    changes = RpcAutodetector(empty, state.clone()).changes(loader.graph, trim_to_apps={label})
    assert label not in changes
    old = state.clone()
    old.models[label, "dish"].options["managed"] = False
    del old.models[label, "dish"].fields["name"]
    changes = RpcAutodetector(old, state.clone()).changes(loader.graph, trim_to_apps={label})
    assert label not in changes


def test_checks(nowhere: str) -> None:
    """The models and the alias of the tests have nothing wrong, and no message is sent for that."""
    mine = [each for each in checks.run_checks() if "pgbackend.rpc" in (each.id or "")]
    assert mine == []
    assert connections[nowhere].validation.check() == []


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({}, "TRANSPORT"),
        ({"TRANSPORT": "pigeon"}, "pigeon"),
        ({"TRANSPORT": "tests.rpc.Pigeon"}, "Pigeon"),
        ({"TRANSPORT": "local", "LIMITS": {"max_rows": 0}}, "max_rows"),
        ({"TRANSPORT": "local", "LIMITS": {"max_birds": 1}}, "max_birds"),
        ({"TRANSPORT": "local", "KEYS": {"k": "short"}}, "32"),
        ({"TRANSPORT": "local", "TIMEOUT": 0}, "TIMEOUT"),
        ({"TRANSPORT": "local", "TIMEOUT": "10"}, "TIMEOUT"),
        ({"TRANSPORT": "local", "ATOMIC_REQUESTS": True}, "ATOMIC_REQUESTS"),
    ],
)
def test_settings(conf: dict[str, Any], words: str) -> None:
    """What is wrong with an alias is a message of the check, and an error of the first use."""
    with alias(**conf) as name:
        (message,) = connections[name].validation.check()
        assert words in message.msg
        if "ATOMIC_REQUESTS" not in conf:
            with pytest.raises(ImproperlyConfigured, match=words):
                Dish.objects.count()


def test_checks_of_models() -> None:
    """A model without its alias, without the application, or with a relation out of the service."""
    with isolate_apps("tests.rpc.waiter"):

        class Lost(RpcModel):
            author = models.ForeignKey(Author, models.CASCADE)
            plain = models.Manager()
            objects = models.Manager()

            class Rpc:
                database = "nowhere"

        found = {each.id for each in Lost.check() if "pgbackend" in each.id}
    assert found == {f"pgbackend.rpc.E00{number}" for number in (2, 3, 4)}


def test_atomic_around_nothing(nowhere: str) -> None:
    """A block without writes is a block: on_commit runs, exceptions go on, blocks nest."""
    called = []
    with transaction.atomic(using=nowhere):
        transaction.on_commit(lambda: called.append(1), using=nowhere)
        with transaction.atomic(using=nowhere):
            assert connections[nowhere].in_atomic_block
        assert called == []
    assert called == [1]
    with pytest.raises(KeyError), transaction.atomic(using=nowhere):
        raise KeyError
    assert not connections[nowhere].in_atomic_block


def test_empty_querysets(nowhere: str) -> None:
    """What is empty for certain sends nothing."""
    none = Dish.objects.none()
    assert list(none) == list(Dish.objects.all()[3:3]) == []
    assert (none.count(), none.exists(), none.first(), none.last()) == (0, False, None, None)
    assert (none.update(name="x"), none.delete()) == (0, (0, {}))
    assert Dish.objects.in_bulk([]) == {}
    with pytest.raises(Dish.DoesNotExist):
        none.get()
    assert list(none | Dish.objects.none()) == []
    assert Order.objects.bulk_create([]) == []
    assert ClientModel.objects.bulk_update([], ["some_field"]) == 0


def test_without_the_router() -> None:
    """Where nothing routes a model to its service, the error says what to put where."""
    with override_settings(DATABASE_ROUTERS=[]):
        attempts: list[Callable[[], Any]] = [
            lambda: list(Dish.objects.all()),
            Dish.objects.count,
            Dish(name="Soup").save,
            lambda: Dish(pk=1).labels.add(1),
        ]
        for attempt in attempts:
            with pytest.raises(ImproperlyConfigured, match=r"RpcRouter.*using\('rpc'\)"):
                attempt()


async def test_atomic_on_the_loop(nowhere: str) -> None:
    """Blocks of `atomic` can be entered and left in coroutines and in bridged code."""

    def nested() -> None:
        with transaction.atomic(using=nowhere), transaction.atomic(using=nowhere):
            transaction.on_commit(lambda: done.append("bridged"), using=nowhere)
        with pytest.raises(KeyError), transaction.atomic(using=nowhere):
            raise KeyError

    done: list[str] = []
    await bridged(nested)()
    async with transaction.atomic(using=nowhere):
        transaction.on_commit(lambda: done.append("awaited"), using=nowhere)
    with pytest.raises(KeyError):
        async with transaction.atomic(using=nowhere):
            raise KeyError
    assert done == ["bridged", "awaited"]
    connections[nowhere].close()


@pytest.mark.load
def test_repr_does_not_wait_long() -> None:
    """A page of errors shows querysets: a service that does not answer is not waited for."""
    key = {"key": "a secret of the tests, 32 bytes or more"}
    with alias(TRANSPORT="postgres", DATABASE="default", KEYS=key):
        began = time.monotonic()
        with pytest.raises(RemoteError, match="DeadlinePassed"):
            repr(Dish.objects.all())
        # TIMEOUT of the alias is a minute.
        assert time.monotonic() - began < 30
        with connections["default"].cursor() as cursor:
            cursor.execute("DELETE FROM pgpubsub_notification")
