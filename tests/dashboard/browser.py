"""The coordinators' page in Chromium, with a stand-in for Supabase in front of a real PostgreSQL."""

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import deno
from psycopg.conninfo import conninfo_to_dict

from tests.support.docs import ROOT
from tests.support.waiting import until

PAGE = ROOT / "docs/examples/dashboard"
HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium")
PASSWORD = "correct horse"


def install(folder: Path) -> Path:
    """Copy the programs into a folder, and install the packages of the lock there. Needs a package registry."""
    for path in (*HERE.glob("*.ts"), HERE / "deno.json", HERE / "deno.lock"):
        shutil.copy(path, folder)
    command = [deno.find_deno_bin(), "install", "--frozen", "--quiet"]
    environment = os.environ | {"DENO_TLS_CA_STORE": "mozilla,system", "NO_COLOR": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=300)
    return folder


def connection_options(database_url: str) -> str:
    """Return the options of the stand-in's client for a server on a Unix socket."""
    parts = conninfo_to_dict(database_url)
    socket = f"{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}"
    return json.dumps({"path": socket, "user": parts["user"], "database": parts["dbname"]})


class Browser:
    """A running Chromium, and the address of the page in it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        """Exceptions and errors in the consoles of all pages."""
        self.url: str = self._read()["url"]

    @classmethod
    @contextmanager
    def start(cls, folder: Path, *, database_url: str, users: Mapping[str, UUID | str]) -> Iterator[Self]:
        """Start the programs of a folder. ``users`` has the users' ids by address."""
        people = json.dumps([{"email": email, "id": str(id), "password": PASSWORD} for email, id in users.items()])
        arguments = [
            connection_options(database_url),
            str(PAGE),
            people,
            CHROMIUM or "chromium",
            str(folder / "profile"),
        ]
        command = [deno.find_deno_bin(), "run", "--quiet", "--frozen", "--allow-all", "main.ts", *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=folder, text=True, stdin=pipe, stdout=pipe) as process:
            try:
                yield cls(process)
            finally:
                assert process.stdin is not None
                process.stdin.close()
                process.wait(timeout=30)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the stand-in has ended"
        message: dict[str, Any] = json.loads(line)
        return message

    def send(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """Call a method of the DevTools protocol, and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        assert self._process.stdin is not None
        print(json.dumps(message), file=self._process.stdin, flush=True)
        while (answer := self._read()).get("id") != number:
            self._note(answer)
        assert "error" not in answer, answer["error"]
        result: dict[str, Any] = answer["result"]
        return result

    def _note(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error", "text": text}}}:
                self.errors.append(text)

    def open(self, *, language: str = "en-GB", width: int = 800, dark: bool = False, script: str = "") -> "Page":
        """Open the page in a profile of its own. ``script`` runs before the page's scripts."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        page = Page(self, self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            page.send(f"{domain}.enable")
        agent = self.send("Browser.getVersion")["userAgent"]
        page.send("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        page.resize(width, dark=dark)
        page.send("Page.addScriptToEvaluateOnNewDocument", source=script)
        page.send("Page.navigate", url=self.url)
        until(lambda: page.evaluate("document.querySelector('h1')?.textContent"))
        return page


class Page:
    """A page of the browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def send(self, method: str, **parameters: object) -> dict[str, Any]:
        return self._browser.send(method, self._session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    @property
    def text(self) -> str:
        """The visible text."""
        return str(self.evaluate("document.body?.innerText ?? ''"))

    def cards(self) -> list[str]:
        """Return the text of each alert."""
        cards: list[str] = self.evaluate("[...document.querySelectorAll('.card')].map((each) => each.innerText)")
        return cards

    def reads_again(self) -> None:
        """Let the page read the alerts now, instead of after 30 seconds."""
        self.evaluate("(dispatchEvent(new Event('online')), null)")

    def describes(self) -> dict[str, list[str]]:
        """Return the descriptions of all buttons, as a screen reader gets them, by name."""
        self.send("Accessibility.enable")
        found: dict[str, list[str]] = {}
        for node in self.send("Accessibility.getFullAXTree")["nodes"]:
            if node.get("role", {}).get("value") in ("button", "DisclosureTriangle"):
                found.setdefault(node["name"]["value"], []).append(node.get("description", {}).get("value", ""))
        return found

    def sees(self, *texts: str) -> None:
        """Wait until the page shows these texts."""
        missing: Sequence[str] = texts

        def shown() -> bool:
            nonlocal missing
            text = self.text
            missing = [each for each in texts if each not in text]
            return not missing

        try:
            until(shown)
        except AssertionError as error:
            message = f"{missing} not in\n{self.text}\n{self._browser.errors}"
            raise AssertionError(message) from error

    def fill(self, selector: str, text: str) -> None:
        """Replace the value of a field as by typing."""
        self.evaluate(f"(document.querySelector({json.dumps(selector)}).select(), null)")
        self.evaluate(f"(document.querySelector({json.dumps(selector)}).focus(), null)")
        self.send("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        self.evaluate(f"(document.querySelector({json.dumps(selector)}).click(), null)")

    def press(self, key: str) -> None:
        """Press a key such as Tab or Enter."""
        codes = {"Tab": 9, "Enter": 13}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "text": "\r" if key == "Enter" else ""}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, **about)

    def log_in(self, email: str, *, password: str = PASSWORD) -> None:
        until(lambda: self.evaluate("!document.querySelector('#login').hidden"))
        self.fill("[name=email]", email)
        self.fill("[name=password]", password)
        self.click("#login button")

    def resize(self, width: int, *, dark: bool = False, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def take_picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def go_offline(self, *, offline: bool = True) -> None:
        self.send("Network.enable")
        rates = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.send("Network.emulateNetworkConditions", offline=offline, **rates)
