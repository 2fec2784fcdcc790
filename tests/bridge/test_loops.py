"""Loops that are run while they run, as in notebooks, and IPython's ``await``.

nest_asyncio and its successor change asyncio for the whole process: each has one of its own.
"""

import json
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.script import run_script

pytestmark = pytest.mark.process

# Runs programs, each on a loop of its own, and prints how often the loop asked its selector, or the
# error. A loop turns on the spot where a callback is due that cannot be called.
PROGRAM = """
import faulthandler
import json
import selectors
import {module} as nest

settings.configure(**conf)
import django
django.setup()

from contextvars import copy_context
from django.db import connection, transaction
from pgbackend import bridged
from tests.models import Author

turns, complaints = 0, []
select = selectors.DefaultSelector.select

def counting(self, timeout=None):
    global turns
    turns += 1
    return select(self, timeout)

selectors.DefaultSelector.select = counting

def nested(coroutine):
    return asyncio.get_event_loop().run_until_complete(coroutine)

async def count():
    return await Author.objects.acount()

async def many(number=20):
    return await asyncio.gather(*(count() for _ in range(number)))

async def main(work):
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    await work()
    await bridged(connection.close_pool)()

def run(work):
    global turns
    turns, complaints[:] = 0, []
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    if {early}:
        nest.apply(loop)
    loop.run_until_complete(main(work))
    loop.close()
    assert not complaints, (len(complaints), complaints[0])
    return turns

faulthandler.dump_traceback_later(110, exit=True)
came_of = {{}}
for name, source in {works}.items():
    scope = dict(globals())
    exec(source, scope)
    try:
        came_of[name] = run(scope["work"])
    except BaseException as error:
        came_of[name] = repr(error)
print(json.dumps(came_of))
"""

WORKS = {
    "after a query": """
        async def work():
            for _ in range(20):
                await count()
                nested(count())
    """,
    "before a query": """
        async def work():
            nested(count())
            await count()
            nested(many())
    """,
    "in one another": """
        async def work(depth=6):
            await count()
            if depth:
                nested(work(depth - 1))
            await count()
    """,
    "in a transaction": """
        async def work():
            async with transaction.atomic():
                await Author.objects.acreate(name="nested")
                assert nested(count()) == 1
                await count()
                transaction.set_rollback(True)
            assert nested(count()) == 0
    """,
    "around a transaction": """
        async def block():
            async with transaction.atomic():
                await count()
                nested(count())
                async with transaction.atomic():
                    nested(count())

        async def work():
            await count()
            nested(block())
    """,
    "in bridged code": """
        def synchronous():
            Author.objects.count()
            nested(many())
            return Author.objects.count()

        async def work():
            await count()
            await bridged(synchronous)()
            nested(bridged(synchronous)())
    """,
    "beside other tasks": """
        async def others():
            for _ in range(50):
                await count()

        async def work():
            tasks = [asyncio.create_task(others()) for _ in range(12)]
            while not all(task.done() for task in tasks):
                await count()
                nested(many(3))
            await asyncio.gather(*tasks)
    """,
    "between rows": """
        async def rows():
            async for _ in Author.objects.aiterator(chunk_size=1):
                nested(count())

        async def work():
            await Author.objects.abulk_create([Author(name=f"author {n}") for n in range(5)])
            await rows()
            nested(rows())
            await Author.objects.all().adelete()
    """,
    "in a context that cells share": """
        async def cell():
            await count()
            nested(many())
            await count()

        async def work():
            context = copy_context()
            for _ in range(5):
                await asyncio.create_task(cell(), context=context)
    """,
    "while a statement is stopped": """
        @bridged
        def sleep():
            connection.cursor().execute("SELECT pg_sleep(600)")

        async def limited():
            await count()
            try:
                async with asyncio.timeout(0.01):
                    await sleep()
            except TimeoutError:
                nested(count())

        async def work():
            await limited()
            nested(limited())
    """,
    "by run()": """
        async def work():
            await count()
            asyncio.run(count())
            await count()
    """,
}


def run(module: str, works: dict[str, str], *, early: bool = True) -> dict[str, int | str]:
    """Run *works* in one process; return how often each loop asked its selector, or the error."""
    sources = {name: dedent(source) for name, source in works.items()}
    found: dict[str, int | str] = json.loads(
        run_script(PROGRAM.format(module=module, works=sources, early=early))
    )
    return found


# The older module differs little: some of them are enough.
OLDER = ("after a query", "in bridged code", "by run()")
CASES = [("nest_asyncio2", name) for name in WORKS] + [("nest_asyncio", name) for name in OLDER]
PARAMETERS = [
    pytest.param(*case, marks=pytest.mark.load if case[0] == "nest_asyncio" else ())
    for case in CASES
]


@cache
def turns(module: str) -> dict[str, int | str]:
    """Run all that is to be run with *module*."""
    return run(module, {name: WORKS[name] for each, name in CASES if each == module})


def check(turns: int | str) -> None:
    assert isinstance(turns, int), turns
    assert turns < 1500


@pytest.mark.parametrize(("module", "name"), PARAMETERS)
def test_nested_runs_end(module: str, name: str) -> None:
    """A run of the loop inside one of its tasks ends, and nothing turns on the spot meanwhile."""
    check(turns(module)[name])


@pytest.mark.parametrize(
    "module", ["nest_asyncio2", pytest.param("nest_asyncio", marks=pytest.mark.load)]
)
def test_nested_runs_once_the_loop_is_changed(module: str) -> None:
    """The loop may be changed in a cell, after queries, and run at once."""
    work = """
        async def work():
            await count()
            nest.apply()
            nested(count())
            await count()
            nested(many())
    """
    check(run(module, {"once": work}, early=False)["once"])


CELLS = """
import os
os.environ["IPYTHONDIR"] = {folder!r}
from traitlets.config import Config
from IPython.core.interactiveshell import InteractiveShell

settings.configure(**conf)
config = Config()
config.HistoryManager.enabled = False
shell = InteractiveShell.instance(config=config)
CELLS = [
    "import django; django.setup()",
    "from tests.models import Author; from django.db import connection, transaction",
    "assert await Author.objects.acount() == 0",
    "assert [author async for author in Author.objects.all()] == []",
    "import asyncio; await asyncio.gather(*(Author.objects.acount() for _ in range(20)))",
    "async with transaction.atomic(): assert await Author.objects.acount() == 0",
    "Author.objects.count()",
    "assert await Author.objects.acount() == 0",
    "from pgbackend import bridged; await bridged(connection.close_pool)()",
]
"""


def test_ipython(tmp_path: Path) -> None:
    """In IPython `await`, `async for` and `async with` work in cells, and queries between them."""
    source = CELLS.format(folder=str(tmp_path)) + "\n".join(
        [
            "CELLS.append('connection.close(); connection.close_pool()')",
            "for cell in CELLS:",
            "    shell.run_cell(cell).raise_error()",
            "print('ended')",
        ]
    )
    assert run_script(source).endswith("ended\n")


@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_notebook(tmp_path: Path, nested: bool) -> None:
    """In a notebook, whose loop runs all the time, `await` works, as do nested runs of the loop."""
    change = "import nest_asyncio; nest_asyncio.apply()"
    run = "asyncio.get_event_loop().run_until_complete(Author.objects.acount())"
    cells = [f"CELLS.insert(3, {change!r})", f"CELLS.insert(6, {run!r})"] if nested else []
    source = CELLS.format(folder=str(tmp_path)) + "\n".join(
        [
            *cells,
            "CELLS.remove('Author.objects.count()')",
            "async def main():",
            "    for cell in CELLS:",
            "        (await shell.run_cell_async(cell, transformed_cell=cell)).raise_error()",
            "asyncio.run(main())",
            "print('ended')",
        ]
    )
    assert run_script(source).endswith("ended\n")
