"""A headless Chromium, driven by its own protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.faults.fix_servers import leave_out
from tests.support.limits import PATIENCE

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

_ARGUMENTS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    # A window that another one hides goes on at full speed.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
)


class ScriptError(Exception):
    """A script of a test's raised, or its page has gone meanwhile."""


class Window:
    """A window of the browser."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session

    def go(self, url: str) -> None:
        """Load a page, and wait until its scripts have run."""
        self._browser.call("Page.navigate", self._session, url=url)
        self.wait_for(f"location.href == {json.dumps(url)} && document.readyState == 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page, as JSON has it. Raise ScriptError."""
        answer = self._browser.call(
            "Runtime.evaluate", self._session, expression=script, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise ScriptError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> Any:
        """Wait until an expression in the page, whichever that is by then, is true; return it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                if value := self.run(condition):
                    return value
            except ScriptError:
                # The page is about to give way to the next one.
                pass
            time.sleep(0.05)
        pytest.fail(f"{condition} is not true: {self.run('document.body.innerText')}")


class Chromium:
    """A browser, by its *socket*."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    def open(self, url: str, *, width: int = 0, height: int = 0) -> Window:
        """Open a window with a page; of a phone's size, in CSS pixels, if one is given."""
        target = self.call("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        window = Window(self, attached["sessionId"])
        if width:
            self.call(
                "Emulation.setDeviceMetricsOverride",
                attached["sessionId"],
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=True,
            )
        window.go(url)
        return window

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result. Raise ScriptError if it fails."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("id") == number:
                break
        if "error" in answer:
            raise ScriptError(answer["error"]["message"])
        return dict(answer["result"])


@contextmanager
def running(binary: str, folder: str) -> Iterator[str]:
    """Run the browser with an empty profile in *folder*; yield the address of its socket."""
    # Chromium's sandbox is not for root.
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    arguments = [*_ARGUMENTS, f"--user-data-dir={folder}", *sandbox]
    process = subprocess.Popen(
        [binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    words = ""
    try:
        for line in process.stderr:
            if address := re.search(r"DevTools listening on (ws://\S+)", line):
                break
            words += line
        else:
            pytest.fail(f"Chromium did not start:\n{words}")
        yield address[1]
        # Its other processes end with it, and with them their hold on the pipe.
        process.stderr.read()
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def chromium() -> Iterator[Chromium]:
    """A headless Chromium. Where there is none, the test is left out."""
    binary = next(filter(None, map(shutil.which, _NAMES)), None)
    if binary is None:
        leave_out("there is no Chromium")
    with (
        tempfile.TemporaryDirectory() as folder,
        running(binary, folder) as address,
        connect(address, max_size=None) as socket,
    ):
        browser = Chromium(socket)
        yield browser
        browser.call("Browser.close")
