"""The pictures in docs/pictures: mails as on a phone, the coordinators' page, and the terminal during the demo.

Each picture stores a hash of its source files. A test compares it with the present files.
"""

import hashlib
import html
import io
import json
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

from certjob.mail.messages.templates import OUR_TEMPLATES
from tests.support.command_line import on_terminal
from tests.support.samples import sample_digests, sample_reminders

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
MESSAGES, DASHBOARD = "certjob/mail/messages", "docs/examples/dashboard"
LAYOUT = [f"{MESSAGES}/layout.html", f"{MESSAGES}/parts.html"]
SOURCES = {
    "reminder": [*LAYOUT, f"{MESSAGES}/reminder.html", f"{MESSAGES}/reminder.nb.words"],
    "digest": [*LAYOUT, f"{MESSAGES}/digest.html", f"{MESSAGES}/digest.nb.words"],
    "alerts": ["certjob/reports/alerts.py", "demo/demo.py"],
    "dry-run": ["certjob/jobs/pages.py", "demo/demo.py"],
    "page": (BROWSER_PAGE := [f"{DASHBOARD}/{name}" for name in ("index.html", "dashboard.js", "words.json")]),
    "page-phone": BROWSER_PAGE,
}
"""The files that each picture shows."""
PHONE, TERMINAL, DESKTOP = 375, 860, 785
"""Widths in CSS pixels. The window is wider than a phone, because Chromium's cannot be that narrow."""
WINDOW = 500
KEYWORD = b"Sources"
KARI, OLA, LIV = (
    {"name": f"{name} Nordmann", "member_no": number}
    for name, number in (("Kari", "M1001"), ("Ola", "M1002"), ("Liv", "M1003"))
)
IN_DIGEST = {"visible": KARI, "paused": KARI, "reinstated": OLA, "expiring": LIV}
"""The sections of the digest in the picture, with one person each."""
VISIBLE, SINCE = "Dynamics sync pending — mentor may still be visible on portal", "2026-03-10T02:10:00Z"
ALERTS = [
    {"alert_id": name, "full_name": name, "member_no": number, "mentor_id": number, "kind": kind, "sentence": VISIBLE}
    | {"cause": cause, "action": action, "state": "waiting", "since": SINCE, "next_attempt_at": "2026-03-10T02:25:00Z"}
    | {"can_confirm_hidden": kind == "may_be_visible"}
    for name, number, kind, cause, action in (
        ("Kari Nordmann", "M1001", "may_be_visible", "contact_not_found", "correct_contact_id"),
        ("Ola Hansen", "M1002", "may_be_visible", "portal_down", "retry"),
        ("Per Lien", "M1003", "may_be_hidden", "portal_down", "retry"),
    )
]
CLIENT = """
    const rows = { alerts: ALERTS, coordinators: { locale: "nb" } };
    const query = (data) => ({ data, count: data?.length, select: () => query(data), order: () => query(data),
        eq: () => query(data), neq: () => query([]), maybeSingle: () => query(data) });
    const channel = { on: () => channel, subscribe: () => {} };
    const auth = { onAuthStateChange: (tell) => tell("", { user: { id: "1", email: "eva@hlf.example" } }) };
    globalThis.fetch = async () => ({ json: async () => (WORDS) });
    globalThis.supabase = { createClient: () => ({ auth, channel: () => channel, from: (name) => query(rows[name]) }) };
"""
"""Supabase's client, for a user who has logged in."""
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
    """Draw all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in mail_pages().items():
        screenshot(browser, name, on_phone(page), WINDOW)
    screenshot(browser, "page", coordinators_page(), DESKTOP)
    screenshot(browser, "page-phone", on_phone(coordinators_page()), WINDOW, dark=True)
    for name, shown in demo_screens().items():
        console = Console(record=True, width=100, file=io.StringIO())
        console.print(Text.from_ansi(shown))
        style = "font: 14px/1.35 DejaVu Sans Mono, monospace; margin: 16px"
        screen = console.export_html(
            theme=MONOKAI, inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>'
        )
        screenshot(browser, name, f'<body style="margin: 0; background: #0c0c0c; color: #d9d9d9">{screen}', TERMINAL)


def on_phone(page: str) -> str:
    """Return a page that shows another one as wide as on a phone."""
    fit = "setTimeout(() => this.style.height = this.contentDocument.documentElement.scrollHeight + 'px', 100)"
    frame = f'<iframe srcdoc="{html.escape(page)}" onload="{fit}" style="border: 0; width: {PHONE}px"></iframe>'
    return f'<body style="margin: 16px; background: #d5dae1; text-align: center">{frame}'


def coordinators_page() -> str:
    """Return the coordinators' page in one file, with three alerts instead of Supabase's client."""
    page, script, words = ((ROOT / file).read_text(encoding="utf-8") for file in BROWSER_PAGE)
    client = CLIENT.replace("ALERTS", json.dumps(ALERTS)).replace("WORDS", words)
    page = re.sub(r'<meta http-equiv="Content-Security.*?>', "", page, flags=re.DOTALL)
    page = re.sub(r'<script src="supabase.js".*?</script>', lambda _: f"<script>{client}</script>", page)
    return re.sub(r' src="dashboard.js"(.*?)>', lambda found: f"{found[1]}>{script}", page)


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
    return {name: OUR_TEMPLATES.render(name, words=words).html for name, words in pages.items()}


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


def screenshot(browser: str, name: str, page: str, width: int, *, dark: bool = False) -> None:
    """Draw a page as high as it is."""
    with tempfile.TemporaryDirectory() as scratch:
        document, picture = Path(scratch, "page.html"), FOLDER / f"{name}.png"
        measure = "<script>onload=()=>setTimeout(()=>document.title=document.documentElement.scrollHeight,300)</script>"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=2000"]
        options += [f"--user-data-dir={scratch}/profile", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]

        def chromium(*more: str) -> str:
            call = [browser, *options, *more, document.as_uri()]
            environment = os.environ | {"TZ": "Europe/Oslo"}
            return subprocess.run(call, check=True, capture_output=True, text=True, timeout=120, env=environment).stdout

        document.write_text(f"<!doctype html><meta charset=utf-8>{page}{measure}", encoding="utf-8")
        dom = chromium(f"--window-size={width},200", "--dump-dom")
        found = re.search(r"<title>(\d+)", dom)
        assert found, dom[:500]
        chromium(f"--window-size={width},{found[1]}", f"--screenshot={picture}")
    store_hash(picture, source_hash(name))
