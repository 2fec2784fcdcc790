"""The backend for TASKS: tasks are stored notifications, and results rows."""

import asyncio
from datetime import timedelta
from typing import Any

import django
import pytest

if django.VERSION < (6, 0):
    pytest.skip("django.tasks is there since Django 6.0", allow_module_level=True)

from django.core import checks
from django.db import transaction
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import override_settings
from django.utils import timezone

from pgbackend.pubsub import Notification
from pgbackend.pubsub.channels import locate_channel, registered
from pgbackend.pubsub.models import TaskRecord
from pgbackend.pubsub.tasks import (
    TaskCancelled,
    TaskChannel,
    TaskFinished,
    acancel,
    await_result,
    cancel,
    prune_results,
)
from pgbackend.pubsub.test import adeliver, assert_notified, deliver
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.pubsub import working
from tests.support.server import Server

from .site import tasks
from .site.models import Author


def run() -> None:
    """Run the tasks that are due, and those that wait for another attempt."""
    deliver(TaskChannel, delayed=True)


def test_result() -> None:
    """A task is enqueued, is run, and has its result."""
    result = tasks.add.enqueue(1, second=2)
    assert (result.status, result.is_finished) == (TaskResultStatus.READY, False)
    assert (result.args, result.kwargs, result.attempts) == ([1], {"second": 2}, 0)
    with assert_notified(TaskFinished, result_id=result.id):
        run()
    result.refresh()
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 3)
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert (result.attempts, result.errors) == (1, [])
    assert tasks.add.get_result(result.id) == result
    assert Notification.from_channel(queue()).count() == 0


def queue(name: str = "Tasks_pubsub_default") -> Any:
    return locate_channel(f"pgbackend.pubsub.tasks.{name}")


async def test_asynchronous() -> None:
    """Coroutine functions are tasks, and all is awaited."""
    result = await tasks.add_async.aenqueue(1, 2)
    await adeliver(TaskChannel)
    await result.arefresh()
    assert result.return_value == 3
    assert await Author.objects.filter(name="async").acount() == 1
    assert (await tasks.add_async.aget_result(result.id)).id == result.id


def test_transaction() -> None:
    """A task is enqueued in the caller's transaction, or not at all."""
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        tasks.add.enqueue(1, 2)
        raise ZeroDivisionError
    assert (TaskRecord.objects.count(), Notification.objects.count()) == (0, 0)


async def test_transaction_on_the_loop() -> None:
    """So it is on the event loop."""
    with pytest.raises(ZeroDivisionError):
        async with transaction.atomic():  # type: ignore[attr-defined]
            await tasks.add.aenqueue(1, 2)
            raise ZeroDivisionError
    assert await Notification.objects.acount() == 0


def test_queues_context_and_priority() -> None:
    """A queue is a channel; the context and the priority are those of Django's pages."""
    result = tasks.attempt_of.using(priority=50).enqueue("x")
    row = Notification.objects.get()
    assert row.channel == queue("Tasks_pubsub_slow").listen_name()
    assert row.priority == 50
    run()
    result.refresh()
    assert result.return_value == [1, "x"]


def test_deferred() -> None:
    """A task with run_after is not run before."""
    later = timezone.now() + timedelta(hours=1)
    result = tasks.add.using(run_after=later).enqueue(1, 2)
    row = Notification.objects.get()
    assert (row.state, row.run_after) == ("delayed", later)
    assert deliver(TaskChannel) == []
    run()
    result.refresh()
    assert result.return_value == 3
    assert result.task.run_after == later


def test_failure() -> None:
    """A task that fails writes nothing, is tried again, and has its errors."""
    result = tasks.fail.enqueue("x")
    run()
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    attempts = 3 if django.VERSION >= (6, 1) else 1
    assert (result.attempts, len(result.errors)) == (attempts, attempts)
    assert result.errors[0].exception_class is ZeroDivisionError
    assert "on purpose" in result.errors[0].traceback
    assert Author.objects.count() == 0
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value


@pytest.mark.skipif(django.VERSION < (6, 1), reason="@task takes options since Django 6.1")
def test_backoff() -> None:
    """Each attempt waits twice as long as the one before."""
    result = tasks.fail.enqueue("x")
    deliver(TaskChannel)
    row = Notification.objects.get()
    assert row.state == "delayed"
    assert row.run_after > timezone.now() - timedelta(seconds=1)
    result.refresh()
    assert (result.status, result.attempts) == (TaskResultStatus.READY, 1)


@pytest.mark.skipif(django.VERSION < (6, 1), reason="@task takes options since Django 6.1")
def test_log(caplog: pytest.LogCaptureFixture) -> None:
    """An attempt that is not the last one is logged with its error."""
    result = tasks.fail.enqueue("x")
    deliver(TaskChannel)
    (record,) = [each for each in caplog.records if each.name == "pgbackend.pubsub"]
    assert f"task {result.id} of tests.pubsub.site.tasks.fail failed, attempt 1 of 3" in (
        record.getMessage()
    )
    assert record.exc_info is not None


@pytest.mark.skipif(django.VERSION < (6, 1), reason="@task takes options since Django 6.1")
def test_unique() -> None:
    """Of a unique task one waits with the same arguments, and its result is what callers get."""
    result = tasks.index.enqueue("x", more=1)
    assert tasks.index.enqueue("x", more=1).id == result.id
    others = [tasks.index.enqueue("x"), tasks.index.enqueue("y", more=1), tasks.add.enqueue(1, 2)]
    assert len({result.id, *(each.id for each in others)}) == TaskRecord.objects.count() == 4
    run()
    result.refresh()
    assert result.return_value == "x"
    again = tasks.index.enqueue("x", more=1)
    assert again.id != result.id
    # Somebody deletes its record, and so its result.
    TaskRecord.objects.filter(pk=again.id).delete()
    assert tasks.index.enqueue("x", more=1).id == again.id
    run()
    again.refresh()
    assert again.return_value == "x"


def test_cancel(server: Server) -> None:
    """A task that waits is taken back; one that a worker has, or that has finished, is not."""
    later = timezone.now() + timedelta(hours=1)
    result = tasks.index.using(run_after=later).enqueue("x")
    with assert_notified(TaskFinished, result_id=result.id):
        assert cancel(result)
    assert (result.status, result.attempts) == (TaskResultStatus.FAILED, 0)
    assert [each.exception_class for each in result.errors] == [TaskCancelled]
    assert result.finished_at is not None
    assert not Notification.from_channel(queue()).exists()
    assert not cancel(result)
    # It does not wait any longer.
    again = tasks.index.enqueue("x")
    assert again.id != result.id
    server.all("BEGIN")
    try:
        server.all("SELECT id FROM pgpubsub_notification FOR UPDATE")
        assert not cancel(again)
    finally:
        server.all("ROLLBACK")
    assert again.status == TaskResultStatus.READY
    run()
    assert not cancel(again)
    assert again.return_value == "x"


async def test_cancel_on_the_loop() -> None:
    """Whoever awaits a result hears that its task was taken back."""
    result = await tasks.add.aenqueue(1, 2)
    waiting = asyncio.create_task(await_result(result, PATIENCE))
    assert await acancel(await tasks.add.aget_result(result.id))
    with pytest.raises(ValueError, match="Task failed"):
        await waiting


def test_task_that_is_gone() -> None:
    """A task whose function is no longer there has failed, with that error."""
    result = tasks.gone.enqueue()
    TaskRecord.objects.update(path="tests.pubsub.site.tasks.nowhere")
    run()
    record = TaskRecord.objects.get(pk=result.id)
    assert record.status == TaskResultStatus.FAILED
    assert "nowhere" in record.errors[0]["traceback"]
    assert Notification.from_channel(queue()).count() == 0


def test_finished_before() -> None:
    """A task that has its result is not run again, whoever had lost its lease."""
    result = tasks.long.enqueue("x")
    channel = queue("Tasks_leased_default")
    assert channel.lease == 60.0
    run()
    from pgbackend.pubsub import send

    send(channel(result_id=result.id))
    run()
    assert Author.objects.count() == 1
    send(channel(result_id="nowhere"))
    run()


def test_results() -> None:
    """A result that is not there, or another task's, is Django's error."""
    with pytest.raises(TaskResultDoesNotExist):
        tasks.add.get_result("nowhere")
    result = tasks.add.enqueue(1, 2)
    with pytest.raises(TaskResultMismatch):
        tasks.fail.get_result(result.id)


async def test_await() -> None:
    """A result is awaited: its end is heard; a failure and a time-out are errors."""
    async with working(TaskChannel):
        results = [await tasks.add.aenqueue(n, 1) for n in range(20)]
        found = await asyncio.gather(*(await_result(each, PATIENCE) for each in results))
        assert found == list(range(1, 21))
        assert await await_result(results[0]) == 1
        failed = await tasks.fail.aenqueue("x")
        with pytest.raises(ValueError, match="Task failed"):
            await await_result(failed, PATIENCE)
    never = await tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).aenqueue(1, 2)
    with pytest.raises(TimeoutError):
        await await_result(never, 0.05)


def test_signals() -> None:
    """Django's signals are sent."""
    sent = []

    def receive(signal: Any, task_result: Any, **kwargs: Any) -> None:
        sent.append((signal, task_result.status))

    signals = (task_enqueued, task_started, task_finished)
    for signal in signals:
        signal.connect(receive)
    try:
        tasks.add.enqueue(1, 2)
        run()
    finally:
        for signal in signals:
            signal.disconnect(receive)
    assert sent == [
        (task_enqueued, TaskResultStatus.READY),
        (task_started, TaskResultStatus.RUNNING),
        (task_finished, TaskResultStatus.SUCCESSFUL),
    ]


async def test_what_is_no_exception() -> None:
    """A task that raises what is no Exception has failed, and is not tried for ever."""
    names = {"cancelled": "CancelledError", "exit": "SystemExit", "closed": "GeneratorExit"}
    results = [await tasks.give_up.aenqueue(kind) for kind in names]
    async with working(TaskChannel):
        for result, name in zip(results, names.values(), strict=True):
            with pytest.raises(ValueError, match="failed"):
                await await_result(result, AT_ONCE)
            assert result.errors[0].exception_class_path.endswith(name)


def test_prune() -> None:
    """Old results are deleted; what has not finished is kept."""
    tasks.add.enqueue(1, 2)
    run()
    waiting = tasks.add.enqueue(3, 4)
    assert prune_results(timedelta(hours=1)) == 0
    assert prune_results(timedelta(0)) == 1
    assert TaskRecord.objects.get().id == waiting.id


def test_clock_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of results are the server's: a worker with a wrong clock deletes none too early."""
    before = timezone.now()
    for day in (-1, 1):
        wrong = before + timedelta(days=day)
        monkeypatch.setattr(timezone, "now", lambda wrong=wrong: wrong)
        result = tasks.add.enqueue(1, 2)
        run()
        assert prune_results(timedelta(hours=1)) == 0
        result.refresh()
        for time in (result.enqueued_at, result.started_at, result.finished_at):
            assert abs(time - before) < timedelta(hours=1)


def test_refused() -> None:
    """What Django's base refuses is refused, and what JSON cannot say."""
    with pytest.raises(InvalidTask):
        tasks.add.using(queue_name="nowhere")
    with pytest.raises(TypeError):
        tasks.add.enqueue(object(), 2)
    assert TaskRecord.objects.count() == 0


def test_options() -> None:
    """An option that nothing takes is an error."""
    wrong = {"BACKEND": "pgbackend.pubsub.tasks.TaskBackend", "OPTIONS": {"lese": 5}}
    with override_settings(TASKS={"default": wrong}):
        found = [each for each in checks.run_checks() if each.id == "pgpubsub.E007"]
        assert [each.msg for each in found] == ["TASKS['default']: nothing takes OPTIONS['lese']."]
        assert task_backends["default"].options == {"lese": 5}


def test_registered() -> None:
    """The worker knows the channels of all queues."""
    names = {each.__name__ for each in registered() if issubclass(each, TaskChannel)}
    assert {"Tasks_pubsub_default", "Tasks_pubsub_slow", "Tasks_leased_default"} <= names


@pytest.mark.parametrize("text", ["chr(0)", "chr(0xDC80)", "float('nan')"])
def test_what_jsonb_refuses(text: str) -> None:
    """A task whose error or result the database cannot store has failed, and is not run again."""
    for task in (tasks.fail_with, tasks.give):
        result = task.enqueue(text)
        run()
        result.refresh()
        assert (result.status, len(result.errors)) == (TaskResultStatus.FAILED, 1)
    assert not Notification.from_channel(queue()).exists()


class Replica:
    """Reads go to a database where nothing of this is."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "other"


async def test_replica() -> None:
    """Results are read where they are written: a replica may be behind."""
    with override_settings(DATABASE_ROUTERS=[Replica()]):
        result = await tasks.add.aenqueue(1, 2)
        async with working(TaskChannel), asyncio.timeout(PATIENCE):
            assert await await_result(result) == 3
        assert task_backends["pubsub"].supports_get_result
        assert (await task_backends["pubsub"].aget_result(result.id)).return_value == 3


async def test_timeout() -> None:
    """A task that takes longer than its backend's time-out has failed, and its work is undone."""
    late, quick = await tasks.brief.aenqueue(60), await tasks.brief.aenqueue(0)
    async with working(TaskChannel), asyncio.timeout(PATIENCE):
        assert await await_result(quick) == "done"
        with pytest.raises(ValueError, match="Task failed"):
            await await_result(late)
    assert late.errors[-1].exception_class is TimeoutError
    assert await Author.objects.acount() == 1


async def test_results_are_pruned() -> None:
    """Workers delete the results of a backend with `keep_results`, and of no other."""
    for task in (tasks.brief, tasks.long):
        result = await task.aenqueue(0)
        past = timezone.now() - timedelta(seconds=90)
        await TaskRecord.objects.filter(pk=result.id).aupdate(finished_at=past)
    async with working(TaskChannel), asyncio.timeout(PATIENCE):
        while await TaskRecord.objects.acount() > 1:
            await asyncio.sleep(0.01)
    assert [each.backend async for each in TaskRecord.objects.all()] == ["leased"]
