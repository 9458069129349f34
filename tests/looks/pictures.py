"""The pictures in docs/pictures: mails as on a phone, and the terminal during the demo.

Each picture stores a hash of the files that it was drawn from, so that a test can say when they differ.
"""

import hashlib
import html
import io
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from certjob.mail.messages.samples import sample_digests, sample_reminders
from certjob.mail.messages.templates import OUR_TEMPLATES
from tests.support.command_line import on_terminal

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
MESSAGES, PAGES = "certjob/mail/messages", "certjob/cli/pages"
LAYOUT = [f"{MESSAGES}/layout.html", f"{MESSAGES}/parts.html"]
SOURCES = {
    "reminder": [*LAYOUT, f"{MESSAGES}/reminder.html", f"{MESSAGES}/reminder.nb.words"],
    "digest": [*LAYOUT, f"{MESSAGES}/digest.html", f"{MESSAGES}/digest.nb.words"],
    "alerts": [f"{PAGES}/alerts.py", "demo/demo.py"],
    "dry-run": [f"{PAGES}/jobs.py", "demo/demo.py"],
}
"""The files that each picture shows."""
PHONE, TERMINAL = 375, 860
"""Widths in CSS pixels. The window is wider than a phone, because Chromium's cannot be that narrow."""
WINDOW = 500
KEYWORD = b"Sources"
KARI, OLA, LIV = (
    {"name": f"{name} Nordmann", "member_no": number}
    for name, number in (("Kari", "M1001"), ("Ola", "M1002"), ("Liv", "M1003"))
)
IN_DIGEST = {"visible": KARI, "paused": KARI, "returned": OLA, "expiring": LIV}
"""The sections of the digest in the picture, with one person each."""
ERASED = re.compile(r"[^\n]*\n\x1b\[\?25h\r\x1b\[1A\x1b\[2K")
"""The last state of a progress bar, which Rich erases."""


def source_hash(name: str) -> str:
    """Return the hash of the files that a picture shows."""
    return hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in SOURCES[name])).hexdigest()


def stored_hash(picture: Path) -> str | None:
    """Return the hash that a PNG file stores, or None."""
    found = re.search(rb"tEXt" + KEYWORD + rb"\0([0-9a-f]{64})", picture.read_bytes())
    return found[1].decode() if found else None


def store_hash(picture: Path, value: str) -> None:
    """Write a text chunk behind the header of a PNG file, which has 33 bytes."""
    data, chunk = picture.read_bytes(), b"tEXt" + KEYWORD + b"\0" + value.encode()
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    picture.write_bytes(data[:33] + framed + data[33:])


def draw(browser: str) -> None:
    """Draw all pictures anew."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in mail_pages().items():
        fit = "this.style.height = this.contentDocument.documentElement.scrollHeight + 'px'"
        frame = f'<iframe srcdoc="{html.escape(page)}" onload="{fit}" style="border: 0; width: {PHONE}px"></iframe>'
        style = "margin: 16px; background: #d5dae1; text-align: center"
        screenshot(browser, name, f'<body style="{style}">{frame}', WINDOW)
    for name, shown in demo_screens().items():
        console = Console(record=True, width=100, file=io.StringIO())
        console.print(Text.from_ansi(shown))
        style = "font: 14px/1.35 DejaVu Sans Mono, monospace; margin: 16px"
        screen = console.export_html(
            theme=MONOKAI, inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>'
        )
        screenshot(browser, name, f'<body style="margin: 0; background: #0c0c0c; color: #d9d9d9">{screen}', TERMINAL)


def mail_pages() -> dict[str, str]:
    """Return the HTML of a reminder and of a digest in bokmål."""
    wanted = {"days_left": 60, "paused": False}
    reminder = next(words for words in sample_reminders("nb") if words.items() >= wanted.items())
    everything = next(sample_digests("nb"))
    lists: dict[str, object] = {name: [] for name, rows in everything.items() if isinstance(rows, list)}
    shown = {name: [everything[name][0] | person] for name, person in IN_DIGEST.items()}
    news = {"urgent": ["visible"], "acknowledged": {"number": 0, "until": ""}}
    digest = everything | lists | shown | news | {"name": "Eva Nordmann"}
    pages = {"reminder": reminder | {"name": "Kari Nordmann"}, "digest": digest}
    return {name: OUR_TEMPLATES.render(name, slug="", words=words).html for name, words in pages.items()}


def demo_screens() -> dict[str, str]:
    """Run the demo on a terminal, and return what two of its commands print, with their colours."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "TZ": "Europe/Oslo", "LANG": "C.UTF-8"}
    demo = [sys.executable, str(ROOT / "demo" / "demo.py")]
    _, shown = on_terminal([], environment=environment, folder=ROOT, columns=98, program=demo)
    commands = {"alerts": "alerts", "dry-run": "run --dry-run"}
    return {name: _screen(shown, command) for name, command in commands.items()}


def _screen(shown: str, command: str) -> str:
    found = re.search(rf"^\$ certjob {command}\n.*?(?=^exit code)", shown, re.MULTILINE | re.DOTALL)
    assert found, f"the demo does not run `certjob {command}`"
    return ERASED.sub("", found[0]).rstrip()


def screenshot(browser: str, name: str, page: str, width: int) -> None:
    """Draw a page as high as it is."""
    with tempfile.TemporaryDirectory() as scratch:
        document, picture = Path(scratch, "page.html"), FOLDER / f"{name}.png"
        measure = "<script>onload=()=>setTimeout(()=>document.title=document.documentElement.scrollHeight,300)</script>"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=2000"]
        options += [f"--user-data-dir={scratch}/profile"]

        def chromium(*more: str) -> str:
            call = [browser, *options, *more, document.as_uri()]
            return subprocess.run(call, check=True, capture_output=True, text=True, timeout=120).stdout

        document.write_text(f"<!doctype html><meta charset=utf-8>{page}{measure}", encoding="utf-8")
        dom = chromium(f"--window-size={width},200", "--dump-dom")
        found = re.search(r"<title>(\d+)", dom)
        assert found, dom[:500]
        chromium(f"--window-size={width},{found[1]}", f"--screenshot={picture}")
    store_hash(picture, source_hash(name))
