"""Lets a project keep its imports of django-pgpubsub: ``import pgbackend.pubsub.as_pgpubsub``.

Put the import at the top of the settings, before anything imports ``pgpubsub``. Then ``pgpubsub``,
``pgpubsub.channel``, ``.listeners``, ``.notify``, ``.triggers`` and ``.models`` are modules with
the names of django-pgpubsub, which are those of `pgbackend.pubsub`. In ``INSTALLED_APPS``
``"pgpubsub"`` is the application ``"pgbackend.pubsub"``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The names of each module of django-pgpubsub that are public there, by the module that has them
# here. They are imported on first use: models need Django's registry of applications.
_LISTENERS = dict.fromkeys(
    (
        "listener",
        "post_delete_listener",
        "post_insert_listener",
        "post_save_listener",
        "post_update_listener",
        "pre_delete_listener",
        "pre_insert_listener",
        "pre_save_listener",
        "pre_update_listener",
        "trigger_listener",
    ),
    "listeners",
) | {"ListenerFilterProvider": "filters"}
_CHANNEL = {
    "BaseChannel": "channels",
    "Channel": "channels",
    "ChannelNotFound": "errors",
    "TriggerChannel": "channels",
    "locate_channel": "channels",
    "set_notification_context": "context",
}
_NOTIFY = {"notify": "sending", "process_stored_notifications": "sending"}

MODULES = {
    "pgpubsub": {
        **{name: _CHANNEL[name] for name in ("Channel", "TriggerChannel")},
        "set_notification_context": "context",
        **_LISTENERS,
        **_NOTIFY,
    },
    "pgpubsub.channel": _CHANNEL,
    "pgpubsub.listeners": _LISTENERS,
    "pgpubsub.notify": _NOTIFY,
    "pgpubsub.triggers": {"LockableNotify": "triggers", "Notify": "triggers"},
    "pgpubsub.models": {"Notification": "models"},
    # Where Django looks for the application.
    "pgpubsub.apps": {"PgpubsubConfig": "apps"},
}


class AliasModule(ModuleType):
    """A module of django-pgpubsub whose names are imported from here on first use."""

    def __init__(self, name: str, places: dict[str, str]) -> None:
        super().__init__(name, __doc__)
        # Django asks whether the module of the application has one with the name "apps".
        self.__spec__ = ModuleSpec(name, None, is_package=name == "pgpubsub")
        self.__all__ = sorted(places)
        self._places = places

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__.get("_places", ()):
            raise AttributeError(
                f"{self.__name__} has no attribute {name!r} in pgbackend.pubsub.as_pgpubsub"
            )
        return getattr(import_module(f"{__package__}.{self._places[name]}"), name)

    def __dir__(self) -> list[str]:
        """Return the public names, imported or not: Django looks for the application's class."""
        return self.__all__


def _install() -> None:
    there = sys.modules.get("pgpubsub")
    if there is not None and not isinstance(there, AliasModule):
        raise ImportError(
            f"pgpubsub is already imported, from {there.__file__}: import"
            " pgbackend.pubsub.as_pgpubsub first, at the top of the settings, and uninstall"
            " django-pgpubsub"
        )
    for name, places in MODULES.items():
        module = sys.modules[name] = AliasModule(name, places)
        if name == "pgpubsub":
            # A package: `import pgpubsub.channel` looks for that in sys.modules first.
            module.__path__ = []
        elif name != "pgpubsub.notify":
            # There `pgpubsub.notify` is the function: its own module imports the name.
            setattr(sys.modules["pgpubsub"], name.rpartition(".")[2], module)


_install()
