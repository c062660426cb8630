"""Chromium without a window, driven through a pipe by its DevTools protocol
(https://chromedevtools.github.io/devtools-protocol/): messages of JSON, a zero byte behind each."""

import base64
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

TIMEOUT_S = 60
# It reads commands from file 3 and writes answers to file 4.
START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
OPTIONS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    # What it shows is ours, and its sandbox needs rights that a container or root has not.
    *("--no-sandbox", "--hide-scrollbars"),
)


class Page:
    """One page of a browser of its own; `messages` and `requests` are of all that it loaded."""

    def __init__(self, program: str, profile: Path) -> None:
        self.messages: list[str] = []  # errors and warnings
        self.requests: list[str] = []  # addresses
        self._received = b""
        self._num_sent = 0
        (commands, self._send_to), (self._receive_from, answers) = os.pipe(), os.pipe()
        ends = [os.dup(end) for end in (commands, answers)]
        arguments = [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, ends), *arguments],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (commands, answers, *ends):
            os.close(end)
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Page":  # noqa: PYI034 -- Self is of Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._session = None
            self.send("Browser.close")
            self._process.wait(TIMEOUT_S)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._send_to)
            os.close(self._receive_from)

    def open(self, path: Path) -> None:
        """Until it has loaded."""
        self.send("Page.navigate", url=path.as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def show(self, width: int, height: int, scheme: str) -> None:
        """A window of CSS pixels; `scheme`: light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, clip: dict[str, float] | None = None) -> bytes:
        """PNG of the window, or of a part of the page: x, y, width, height, scale."""
        options = {} if clip is None else {"clip": clip, "captureBeyondViewport": True}
        return base64.b64decode(self.send("Page.captureScreenshot", **options)["data"])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command. Events that come before it are kept."""
        self._num_sent += 1
        message = {"id": self._num_sent, "method": method, "params": parameters}
        message |= {} if self._session is None else {"sessionId": self._session}
        os.write(self._send_to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._num_sent:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._received:
            readable, _, _ = select.select([self._receive_from], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._receive_from, 1 << 20) if readable else b""
            assert data, "the browser does not answer"
            self._received += data
        text, self._received = self._received.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, event: dict[str, Any]) -> None:
        if method == "Log.entryAdded":
            self.messages.append(event["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(str(event["args"]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(str(event["exceptionDetails"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
