"""Listeners that note what they were called with, in `heard`."""

from typing import Any

from pgbackend import pubsub

from .channels import (
    AuthorPlain,
    AuthorStored,
    ChildStored,
    KindsStored,
    LineStored,
    Orders,
    PostStored,
    Reads,
)

# Pairs of a listener's name and its keyword arguments, in the order of the calls.
heard: list[tuple[str, dict[str, Any]]] = []


@pubsub.listener(Reads)
def on_read(**kwargs: Any) -> None:
    heard.append(("on_read", kwargs))


@pubsub.listener(Reads)
async def on_read_async(**kwargs: Any) -> None:
    heard.append(("on_read_async", kwargs))


@pubsub.listener(Orders)
async def on_order(number: int, note: str) -> None:
    heard.append(("on_order", {"number": number, "note": note}))


@pubsub.post_insert_listener(AuthorPlain)
def after_insert(**kwargs: Any) -> None:
    heard.append(("after_insert", kwargs))


@pubsub.pre_delete_listener(AuthorPlain)
def before_delete(**kwargs: Any) -> None:
    heard.append(("before_delete", kwargs))


@pubsub.post_save_listener(AuthorStored)
def after_save(**kwargs: Any) -> None:
    heard.append(("after_save", kwargs))


@pubsub.post_delete_listener(PostStored)
def after_post_delete(**kwargs: Any) -> None:
    heard.append(("after_post_delete", kwargs))


@pubsub.post_insert_listener(ChildStored)
@pubsub.post_insert_listener(KindsStored)
@pubsub.post_insert_listener(LineStored)
def after_other_insert(**kwargs: Any) -> None:
    heard.append(("after_other_insert", kwargs))
