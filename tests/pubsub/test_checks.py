"""Checks: what would go wrong is told by class, with the fix, before anything is sent."""

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass, make_dataclass
from typing import Any

import pytest
from django.core import checks
from django.core.management import CommandError, call_command
from django.db import transaction
from django.db.models import Q
from django.test import override_settings

from pgbackend.pubsub import (
    Channel,
    ChannelNotFound,
    PayloadError,
    PubsubError,
    TriggerChannel,
    listener,
    locate_channel,
    notify_many,
    post_insert_listener,
    registry,
    send,
)
from pgbackend.pubsub.channels import registered, select
from pgbackend.pubsub.filters import ListenerFilterProvider
from pgbackend.pubsub.names import old_name, wire_name
from pgbackend.pubsub.sending import build
from tests.support.script import run_script
from tests.support.server import Server

from .site.channels import AuthorPlain, Orders, Reads
from .site.models import Author


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Forget the channels of the test."""
    before = {channel: list(found) for channel, found in registry.listeners.items()}
    yield
    registry.listeners.clear()
    registry.listeners.update(before)


def messages(**databases: Any) -> list[tuple[str, str]]:
    """Return the ids and texts of what the checks say of pubsub."""
    found = checks.run_checks(include_deployment_checks=True, **databases)
    return [(each.id, each.msg) for each in found if str(each.id).startswith("pgpubsub")]


def test_nothing_is_wrong() -> None:
    """The channels of the tests are well, in the database, too."""
    assert messages(databases=["default", "other"]) == []


@dataclass
class Twice(Channel):
    """A channel of the same path as the next one, but for the class around it."""


class Around:
    @dataclass
    class Twice(Channel):
        """See above."""


def test_same_name() -> None:
    """Two channels of one name are an error that names both."""
    listener(Twice)(lambda: None)
    listener(Around.Twice)(lambda: None)
    ((identifier, message),) = messages()
    assert identifier == "pgpubsub.E001"
    assert "test_checks.Twice and tests.pubsub.test_checks.Around.Twice have the same" in message


def clashing() -> tuple[str, str]:
    """Return two class names that django-pgpubsub gives the same name on the wire."""
    seen: dict[str, str] = {}
    for n in range(10_000):
        name = old_name(f"{__name__}.Channel{n}")
        if name in seen:
            return seen[name], f"Channel{n}"
        seen[name] = f"Channel{n}"
    raise AssertionError("No two names of 10,000 are the same")


def test_same_old_name() -> None:
    """Names that clash in django-pgpubsub are different here, and a warning while it may send."""
    for name in clashing():
        listener(make_dataclass(name, [], bases=(Channel,), namespace={"__module__": __name__}))(
            lambda: None
        )
    ((identifier, message),) = messages()
    assert identifier == "pgpubsub.W001"
    assert "is heard by the first one alone" in message
    with override_settings(PGPUBSUB_OLD_NAMES=False):
        assert messages() == []


def test_names() -> None:
    """A name is readable, needs no quotes, and is short enough for PostgreSQL and pgtrigger."""
    assert wire_name("shop.channels.Orders").startswith("pgpubsub_orders_")
    assert wire_name("shop.channels.Orders") != wire_name("store.channels.Orders")
    for name in ("x.Y", "x." + "Long" * 50, "x.Größe"):
        made = wire_name(name)
        assert made.isascii()
        assert made == made.lower()
        assert made.isidentifier()
        assert len(made) <= 47
    assert Orders.listen_names() == [Orders.listen_name(), old_name(Orders.name())]
    # As django-pgpubsub 1.3.1 has it for its own test's channel.
    assert old_name("pgpubsub.tests.channels.AuthorTriggerChannel") == "pgpubsub_160cf"


def test_fields_without_form() -> None:
    """A field whose values JSON cannot say is an error that names it."""

    class Thing: ...

    listener(make_dataclass("Made", [("thing", Thing)], bases=(Channel,)))(lambda thing: None)
    ((identifier, message),) = messages()
    assert identifier == "pgpubsub.E002"
    assert "Made.thing: " in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lock_notifications": 1}, "lock_notifications is True or False, not 1."),
        ({"lease": 5.0}, "lease is for stored channels: set lock_notifications = True."),
        ({"lease": 0, "lock_notifications": True}, "lease is a number of seconds above 0 or None"),
        ({"retries": -1, "lock_notifications": True}, "retries is a whole number from 0 on"),
        ({"retries": 1.5, "lock_notifications": True}, "retries is a whole number"),
        ({"backoff": None, "lock_notifications": True}, "backoff is a number of seconds from 0 on"),
        ({"timeout": "1"}, "timeout is a number of seconds above 0 or None"),
        ({"concurrency": 0}, "concurrency is a whole number from 1 on"),
        ({"concurrency": 2**63}, "concurrency is a whole number from 1 on, at most 9,223,372"),
        ({"backoff": float("nan"), "lock_notifications": True}, "backoff is a number of seconds"),
        ({"backoff": 1e300, "lock_notifications": True}, "backoff is a number of seconds"),
        ({"lease": float("inf"), "lock_notifications": True}, "lease is a number of seconds"),
        ({"wake": "never", "lock_notifications": True}, 'wake is "notify" or "poll"'),
        ({"using": "nowhere"}, "using is an alias of DATABASES or None, not 'nowhere'"),
        ({"ordered_by": "x", "lock_notifications": True}, "ordered_by is none of the channel's"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    """A wrong option is an error that names the channel and what is right."""
    made = make_dataclass("Made", [("number", int)], bases=(Channel,), namespace=options)
    listener(made)(lambda number: None)
    found = messages()
    assert {identifier for identifier, _ in found} == {"pgpubsub.E003"}
    assert any(f"Made: {message}" in text for _, text in found), found


def test_annotated_option() -> None:
    """An option that was annotated would be a field of the payload."""
    made = make_dataclass("Made", [("lease", float, 5.0)], bases=(Channel,))
    listener(made)(lambda lease: None)
    assert any("lease is an option, not a field" in text for _, text in messages())


def test_order_of_a_table() -> None:
    """A trigger channel is ordered by a field of its model."""

    @dataclass
    class Made(TriggerChannel):
        model = Author
        lock_notifications = True
        ordered_by = "nme"

    listener(Made)(lambda **kwargs: None)
    ((identifier, message),) = messages()
    assert identifier == "pgpubsub.E003"
    assert "ordered_by is no field of pubsub_site.Author: 'nme'" in message


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: None, "got an unexpected keyword argument"),
        (lambda model_id: None, "got an unexpected keyword argument 'date'"),
        (lambda model_id, date, more: None, "missing a required argument: 'more'"),
        (lambda model_id, date, /: None, "positional"),
    ],
)
def test_listeners_parameters(function: Callable[..., None], message: str) -> None:
    """A listener that does not take the channel's fields is an error that names both."""
    listener(Reads)(function)
    ((identifier, text),) = messages()
    assert identifier == "pgpubsub.E004"
    assert "cannot be called with the fields of tests.pubsub.site.channels.Reads" in text
    assert message in text


def test_context_of_listeners() -> None:
    """A listener of a table takes the context only where the project asks for it."""

    @listener(AuthorPlain)
    def function(old: Author, new: Author) -> None: ...

    assert messages() == []
    with override_settings(PGPUBSUB_PASS_CONTEXT_TO_LISTENERS=True):
        ((identifier, _),) = messages()
    assert identifier == "pgpubsub.E004"


class Filter(ListenerFilterProvider):
    def get_filter(self) -> Q:
        return Q(payload__context__tenant=1)


class NoFilter:
    def get_filter(self) -> int:
        return 5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PGPUBSUB_OLD_NAMES", 1, "PGPUBSUB_OLD_NAMES is True or False, not 1"),
        ("PGPUBSUB_LISTEN_DSN", {"default": 5}, "is a DSN, a dictionary of DSNs by alias, or None"),
        ("PGPUBSUB_LISTENER_FILTER", 5, "is the dotted path of a class or None, not 5"),
        ("PGPUBSUB_LISTENER_FILTER", "nowhere.Filter", "'nowhere.Filter', which is no class with"),
        ("PGPUBSUB_LISTENER_FILTER", f"{__name__}.Twice", "which is no class with get_filter()"),
        ("PGPUBSUB_LISTENER_FILTER", f"{__name__}.NoFilter", "returned 5; return a Q"),
    ],
)
def test_settings(name: str, value: object, message: str) -> None:
    """A wrong setting is an error that names it and its value."""
    with override_settings(**{name: value}):
        found = messages()
    assert {identifier for identifier, _ in found} == {"pgpubsub.E005"}
    assert message in found[0][1]
    with override_settings(PGPUBSUB_LISTENER_FILTER=f"{__name__}.Filter"):
        assert messages() == []


def test_misspelt_setting() -> None:
    """A setting that nothing reads is told with the nearest one."""
    with override_settings(PGPUBSUB_OLD_NAME=False):
        (found,) = [each for each in checks.run_checks() if each.id == "pgpubsub.W002"]
    assert found.hint == "Did you mean PGPUBSUB_OLD_NAMES?"


def test_trigger_not_migrated() -> None:
    """A trigger that the database does not have is a warning that names the channel."""

    @dataclass
    class Made(TriggerChannel):
        model = Author

    post_insert_listener(Made)(lambda old, new: None)
    import pgtrigger

    (trigger,) = [
        each for _, each in pgtrigger.registered() if getattr(each, "channel", None) is Made
    ]
    try:
        ((identifier, message),) = messages(databases=["default"])
        assert identifier == "pgpubsub.W003"
        assert "Made for INSERT of pubsub_site.Author is not in the database" in message
    finally:
        trigger.unregister(Author)


def test_option_that_nothing_reads() -> None:
    """What is nearly an option is a warning that names it: a plain channel may not be meant."""

    @dataclass
    class Made(Channel):
        lock_notification = True
        retry_limit = 5

        locked: bool = True

    listener(Made)(lambda locked: None)
    (found,) = [each for each in checks.run_checks() if str(each.id).startswith("pgpubsub")]
    assert (found.id, found.hint) == ("pgpubsub.W004", "Did you mean lock_notifications?")
    assert found.msg.endswith("Made: nothing reads lock_notification.")


def test_no_table(server: Server) -> None:
    """Where the table is not there, that is the one warning, and the command says what to run."""
    server.all("ALTER TABLE pgpubsub_notification RENAME TO away")
    try:
        ((identifier, message),) = messages(databases=["default"])
        with pytest.raises(CommandError, match=r"is not in the database 'default'.* Run migrate\."):
            call_command("pubsub", "stats")
    finally:
        server.all("ALTER TABLE away RENAME TO pgpubsub_notification")
    assert identifier == "pgpubsub.W005"
    assert "pgpubsub_notification is not in the database 'default'" in message


class Callable_:
    def __call__(self) -> None: ...


@pytest.mark.parametrize("wrong", [5, None, "shop.listeners.on_order", Callable_])
def test_no_function(wrong: Any) -> None:
    """What is no function is refused where it is decorated, by the name of the channel."""
    with pytest.raises(PubsubError, match=r"A listener of \S+\.Orders is a function .*, not "):
        listener(Orders)(wrong)


def test_generators() -> None:
    """A generator function's body would never run."""

    async def generate() -> Any:
        yield datetime.date.today()

    with pytest.raises(PubsubError, match="whose body would never run"):
        listener(Orders)(generate)


def test_objects_with_a_call() -> None:
    """An object that can be called is a listener."""
    listener(Twice)(Callable_())
    assert [each.is_async for each in Twice.registered_listeners()] == [False]


def test_unknown_channels() -> None:
    """A channel that is not there is an error that says how one is named."""
    for wrong in ("shop.channels.Orders", "tests.pubsub.test_checks.Nowhere", ""):
        with pytest.raises(ChannelNotFound, match="There is no channel"):
            locate_channel(wrong)
    for wrong_class in (int, "tests.pubsub.test_checks.Around", 5):
        with pytest.raises(ChannelNotFound, match="is no channel class"):
            locate_channel(wrong_class)  # type: ignore[arg-type]
    with pytest.raises(
        ChannelNotFound, match=r"did you mean 'tests\.pubsub\.site\.channels\.Orders'"
    ):
        locate_channel("tests.pubsub.site.channels.Order")
    with pytest.raises(
        ChannelNotFound, match=r"did you mean 'tests\.pubsub\.site\.channels\.Orders'"
    ):
        locate_channel("Orders")
    with pytest.raises(ChannelNotFound, match=r"clashing\(\) is no channel: .* takes the channel"):
        listener(clashing)  # type: ignore[arg-type]
    with pytest.raises(PubsubError, match="has no table"):
        post_insert_listener(Orders)
    with pytest.raises(PubsubError, match=r"model is the class of a model, not 'shop.Order'"):
        post_insert_listener(make_dataclass("Made", [], bases=(Text,)))
    with pytest.raises(PubsubError, match="TriggerChannel names no model"):
        post_insert_listener(TriggerChannel)


class Text(TriggerChannel):
    model = "shop.Order"


def test_names_of_fields() -> None:
    """A field may be called as a method of channels; it has no default then."""

    @dataclass
    class Made(Channel):
        lock_notifications = True

        name: str
        stream: int
        number: int = 1

    listener(Made)(lambda name, stream, number: None)
    assert messages() == []
    assert Made("x", 2).serialize() == '{"kwargs":{"name":"x","stream":2,"number":1}}'
    assert Made.name().endswith("Made")
    with pytest.raises(PayloadError, match=r"Made does not take .*'name'.* name, stream, number$"):
        build(Made, {"stream": 1})
    with transaction.atomic():
        assert notify_many([Made("x", 2)]) == 1
        assert send(Made("x", 2)) is not None
        transaction.set_rollback(True)
    with pytest.raises(PubsubError, match=r"Wrong\.signature: no field can have the name"):

        @dataclass
        class Wrong(Channel):
            signature: str


def test_no_dataclass() -> None:
    """A class that was not decorated is told as such where it is sent to."""

    class Made(Channel):
        number: int

    with pytest.raises(PayloadError, match=r"Made is no dataclass: decorate the class"):
        build(Made, {"number": 1})


def test_choice_of_channels() -> None:
    """Channels are chosen by class, by path, and by a class that they are derived from."""
    assert select(None) == registered()
    assert select(["tests.pubsub.site.channels.Reads"]) == [Reads]
    found = {each for each in select([Channel]) if each.__module__ == Reads.__module__}
    assert found == {Reads, Orders}
    with pytest.raises(ChannelNotFound, match=r"No listener is registered for .*Twice.*ready\(\)"):
        select([Twice])


@pytest.mark.process
def test_without_the_application() -> None:
    """Where the application is not in INSTALLED_APPS, listeners and sending say so."""
    printed = run_script(
        """
        settings.configure(INSTALLED_APPS=["pgbackend", "pgtrigger"], DATABASES=conf["DATABASES"])
        import django
        django.setup()
        from django.core.exceptions import ImproperlyConfigured
        from dataclasses import dataclass
        from pgbackend.pubsub import Channel, listener, notify

        @dataclass
        class Made(Channel):
            number: int

        for what in (lambda: listener(Made)(print), lambda: notify(Made, number=1)):
            try:
                what()
            except ImproperlyConfigured as error:
                print(error)
        """
    )
    assert (
        printed.splitlines()
        == [
            '"pgbackend.pubsub" is not in INSTALLED_APPS: INSTALLED_APPS = [..., "pgtrigger",'
            ' "pgbackend.pubsub"]'
        ]
        * 2
    )


@pytest.mark.process
def test_without_django_pgtrigger() -> None:
    """Where django-pgtrigger is not installed, the error names the extra."""
    printed = run_script(
        """
        sys.modules["pgtrigger"] = None
        settings.configure(INSTALLED_APPS=["pgbackend.pubsub"])
        import django
        from django.core.exceptions import ImproperlyConfigured
        try:
            django.setup()
        except (ImproperlyConfigured, ValueError) as error:
            print(error)
        """
    )
    assert "pip install 'pgbackend[pubsub]'" in printed
