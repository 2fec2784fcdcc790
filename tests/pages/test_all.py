"""That each example is run by a test of this folder, or named here with the reason why not."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.pages.examples import USED, all_examples, example

# Each with a package that the environment of the tests does not have.
NOT_RUN = {
    ("docs/howto/channels.md", "INSTALLED_APPS"): "channels",
    ("docs/howto/channels.md", "class OrderConsumer"): "channels",
    ("docs/howto/channels.md", "ProtocolTypeRouter"): "channels",
    ("docs/howto/channels.md", "get_channel_layer"): "channels",
    ("docs/howto/channels.md", "WebsocketCommunicator"): "channels",
    ("docs/howto/development-server.md", "daphne"): "daphne",
    ("docs/howto/drf-and-ninja.md", "class OnLoop"): "djangorestframework",
    ("docs/howto/drf-and-ninja.md", "from adrf"): "adrf",
    ("docs/howto/drf-and-ninja.md", "from ninja"): "django-ninja",
    ("docs/howto/fastapi-and-starlette.md", "api.mount"): "fastapi",
    ("docs/howto/fastapi-and-starlette.md", "Depends"): "fastapi",
    ("docs/howto/fastapi-and-starlette.md", "from starlette"): "starlette",
    ("docs/howto/tenants-and-rls.md", "TenantSyncRouter"): "django-tenants",
    ("docs/howto/tenants-and-rls.md", "set_tenant"): "django-tenants",
}


def test_each_example_is_run() -> None:
    """A new example needs a test, or the name of the package that it waits for."""
    for file in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"{__package__}.{file.stem}")
    run = set(USED)
    excused = {example(*place) for place in NOT_RUN}
    assert not run & excused
    assert [str(each) for each in all_examples() if each not in run | excused] == []
