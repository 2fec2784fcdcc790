"""The protocol and the plain client where neither Django nor psycopg is installed, and in PHP."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import greenlet
import pytest

from tests.faults.fix_servers import leave_out
from tests.rpc.echo import serving
from tests.rpc.vectors.reading import HERE

ROOT = Path(__file__).parents[2]


def run(*command: str, **environ: str) -> str:
    """Return what *command* prints; fail if it does."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.process
def test_python_without_packages(tmp_path: Path) -> None:
    """An interpreter with greenlet and no other package passes the vectors, and asks a service.

    It is started without site-packages, and finds greenlet alone in a folder of its own: nothing
    has to be installed for it.
    """
    (tmp_path / "greenlet").symlink_to(Path(greenlet.__file__).parent)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    with serving() as server:
        printed = run(
            *(sys.executable, "-S", "-W", "error", "tests/rpc/without_django.py", server.url),
            PYTHONPATH=path,
        )
    assert "vectors, without django, psycopg" in printed
    assert int(printed.split()[0]) > 200


def php() -> str:
    """Return the PHP interpreter; without one the test is left out."""
    found = shutil.which("php")
    if found is None:
        leave_out("there is no PHP")
    return found


@pytest.mark.process
def test_php_vectors() -> None:
    """The client for PHP passes the vectors."""
    printed = run(php(), str(HERE / "check.php"))
    passed, failed = printed.splitlines()[-1].split(" passed, ")
    assert int(passed) > 150
    assert failed == "0 failed"


@pytest.mark.process
def test_php_asks_a_service(tmp_path: Path) -> None:
    """The client for PHP asks by HTTP, and gets rows, refusals and the errors of its transport."""
    script = tmp_path / "ask.php"
    script.write_text(PHP)
    with serving() as server:
        printed = run(
            php(), str(script), str(ROOT / "pgbackend/rpc/php/pgbackend_rpc.php"), server.url
        )
    assert printed.splitlines() == [
        "Soup,Tea",
        "Soup 7 2",
        "null",
        "DoesNotExist",
        '[[1,"x",{"a":1.5}],[{"id":1,"name":"Soup"},{"id":2,"name":"Tea"}],[1,2]]',
        "Soup 1",
        "1:Soup 2:Tea",
        "BadSignature unsealed",
        "UnknownKey unsealed",
        "PermissionDenied sealed",
        "Unavailable",
        "Unavailable",
    ]


PHP = r"""<?php
use Pgbackend\Rpc\{Client, Q, RemoteError};
require $argv[1];
$url = $argv[2];
$secret = '0123456789abcdef0123456789abcdef';
$client = new Client("$url/rpc", 'k1', $secret);
$dishes = $client->model('kitchen.Dish');
function code(callable $call): void
{
    try {
        $call();
        echo "no error\n";
    } catch (RemoteError $error) {
        $said = in_array($error->errorCode, ['BadSignature', 'UnknownKey', 'PermissionDenied']);
        echo $error->errorCode, $said ? ($error->sealed ? ' sealed' : ' unsealed') : '', "\n";
    }
}
$either = Q::of(id: 1)->or(Q::of(id: 2));
echo implode(',', array_column($dishes->filter($either)->rows(), 'name')), "\n";
$soup = $dishes->get(id: 1);
echo "$soup[name] {$soup['station']['id']} ", count($soup['tags']), "\n";
echo json_encode($dishes->none()->first()), "\n";
code(fn () => $dishes->none()->get());
echo json_encode($client->gather(
    $dishes->request('call', 'echo', 1, 'x', ['a' => 1.5]),
    $dishes->values('id', 'name')->request('rows'),
    $dishes->values_list('id', flat: true)->request('rows'),
)), "\n";
[$row, $created] = $dishes->get_or_create(name: 'Soup');
echo "$row[name] ", (int) $created, "\n";
foreach ($dishes->in_bulk([1, 2], field_name: 'id') as $key => $row) {
    $found[] = "$key:$row[name]";
}
echo implode(' ', $found), "\n";
code(fn () => (new Client("$url/rpc", 'k1', strrev($secret)))->model('a.B')->count());
code(fn () => (new Client("$url/rpc", 'k9', $secret))->model('a.B')->count());
code(fn () => (new Client("$url/rpc", 'k2', strrev($secret), 'eve'))->model('a.B')->count());
code(fn () => (new Client("$url/nowhere", 'k1', $secret))->model('a.B')->count());
code(fn () => (new Client("$url/cut", 'k1', $secret))->model('a.B')->count());
"""
