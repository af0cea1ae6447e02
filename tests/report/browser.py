"""A headless Chromium driven over its DevTools protocol: JSON messages through two pipes, no library needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
KEYS = {
    "ArrowDown": 40,
    "ArrowUp": 38,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "Home": 36,
    "End": 35,
    "PageDown": 34,
    "Tab": 9,
}


class PageError(Exception):
    """The page's script failed, or the browser refused a command."""


class Browser:
    """One page in a headless Chromium; a context manager.

    Args:
        profile: an empty directory for what the browser stores.
        timeout: seconds to wait for any answer.
    """

    def __init__(self, profile: Path, timeout: float = 30.0) -> None:
        self._profile = profile
        self._timeout = timeout
        self._number = 0
        self._buffer = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # the browser reads commands from descriptor 3 and answers on 4
        start = f'exec "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", start, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={self._profile}"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(timeout=30)
        finally:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._send(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                break
            self.events.append(answer)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']}")
        return answer["result"]

    def _send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._commands, data) :]

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + self._timeout
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(self._answers, 1 << 20) if ready else b""
            if not chunk:
                raise PageError("the browser does not answer")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    # What a reader does

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a local file with a fragment, and wait until its groups are shown."""
        self.events.clear()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        self.wait("performance.getEntriesByName('groups-shown').length > 0")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page, or the value of a promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise PageError(found["exceptionDetails"].get("exception", {}).get("description", "the script failed"))
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + self._timeout
        while not self.evaluate(condition):
            if time.monotonic() > until:
                raise PageError(f"never true: {condition}; {self.errors()}")
            time.sleep(0.02)

    def texts(self, selector: str) -> list[str]:
        """Return the text of each element that a selector finds."""
        return self.evaluate(f"[...document.querySelectorAll({selector!r})].map((node) => node.textContent)")

    def click(self, selector: str) -> None:
        """Click into the middle of the first such element, with the mouse, once the page no longer moves it."""
        place = self.evaluate(
            f"(async () => {{ const node = document.querySelector({selector!r}); let last = [];"
            "for (let look = 0; look < 100; look++) {"
            "node.scrollIntoView({block: 'center'});"
            "const box = node.getBoundingClientRect();"
            "const place = [box.x + box.width / 2, box.y + box.height / 2];"
            "if (place[0] === last[0] && place[1] === last[1]) break;"
            "last = place; await new Promise((done) => setTimeout(done, 20)); }"
            "return last; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str, times: int = 1) -> None:
        """Press a key in the element that has the focus."""
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def choose(self, label: str, value: str) -> None:
        """Choose a value of the drop-down list with a label."""
        script = (
            "(label, value) => {"
            "const named = (node) => node.textContent.startsWith(label);"
            "const list = [...document.querySelectorAll('label')].find(named).querySelector('select');"
            "list.value = value;"
            "list.dispatchEvent(new Event('change'));"
            "}"
        )
        self.evaluate(f"({script})({label!r}, {value!r})")

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Set the window and the theme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """Write a PNG of the window, or of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
        return path

    # What went wrong

    def errors(self) -> list[str]:
        """Return exceptions since the page was opened, and refusals such as those of the content security policy."""
        self.evaluate("0")  # events that are under way arrive before this answer
        thrown = [
            e["params"]["exceptionDetails"]["text"]
            + str(e["params"]["exceptionDetails"].get("exception", {}).get("description"))
            for e in self.events
            if e.get("method") == "Runtime.exceptionThrown"
        ]
        logged = [e["params"]["entry"]["text"] for e in self.events if e.get("method") == "Log.entryAdded"]
        return [*thrown, *logged]

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for since it was opened, its own included."""
        self.evaluate("0")
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
