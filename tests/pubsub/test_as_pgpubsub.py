"""The alias module: imports of django-pgpubsub go on as they were."""

import pytest

from tests.support.script import run_script

pytestmark = pytest.mark.process

SETUP = """
settings.configure(**conf)
import pgbackend.pubsub.as_pgpubsub
import django
django.setup()
"""


def test_imports() -> None:
    """Each form of import that django-pgpubsub's pages use gives the names of pgbackend.pubsub."""
    printed = run_script(
        SETUP
        + """
        import pgpubsub
        import pgpubsub.channel
        from pgpubsub import Channel, notify, post_insert_listener, process_stored_notifications
        from pgpubsub.channel import TriggerChannel, locate_channel
        from pgpubsub.listeners import ListenerFilterProvider, listener
        from pgpubsub.models import Notification
        from pgpubsub.notify import notify as the_same
        from pgpubsub.triggers import LockableNotify, Notify
        from pgbackend import pubsub

        assert notify is the_same is pgpubsub.notify is pubsub.notify
        assert pgpubsub.channel.Channel is Channel is pubsub.Channel
        assert pgpubsub.post_save_listener is pubsub.post_save_listener
        assert Notification is pubsub.Notification
        try:
            pgpubsub.nowhere
        except AttributeError as error:
            print(error)
        """.replace("\n        ", "\n")
    )
    assert printed == "pgpubsub has no attribute 'nowhere' in pgbackend.pubsub.as_pgpubsub\n"


@pytest.mark.parametrize("entry", ["pgpubsub", "pgpubsub.apps.PgpubsubConfig"])
def test_installed_apps(entry: str) -> None:
    """The application may stay in INSTALLED_APPS under django-pgpubsub's names."""
    printed = run_script(
        f"""
        apps = [app.replace("pgbackend.pubsub", {entry!r}) for app in conf["INSTALLED_APPS"]]
        settings.configure(**{{**conf, "INSTALLED_APPS": apps}})
        import pgbackend.pubsub.as_pgpubsub
        import django
        django.setup()
        from django.apps import apps
        from pgpubsub.models import Notification
        print({entry!r} in settings.INSTALLED_APPS, apps.get_app_config("pgpubsub").name)
        print(Notification._meta.label)
        """
    )
    assert printed == "True pgbackend.pubsub\npgpubsub.Notification\n"


def test_too_late() -> None:
    """Where django-pgpubsub itself was imported before, the alias says what to do."""
    printed = run_script(
        """
        import types
        sys.modules["pgpubsub"] = types.ModuleType("pgpubsub")
        sys.modules["pgpubsub"].__file__ = "there.py"
        try:
            import pgbackend.pubsub.as_pgpubsub
        except ImportError as error:
            print(error)
        """
    )
    assert "already imported, from there.py: import pgbackend.pubsub.as_pgpubsub first" in printed
