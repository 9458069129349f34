"""`make looks`: the pictures of the documents, and of every mail in three languages and widths, light and dark."""

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from certjob.mail.messages.content import LANGUAGES, RenderedMessage
from certjob.mail.messages.templates import OUR_TEMPLATES
from tests.looks import pictures
from tests.looks.contrast import contrasts
from tests.support.samples import sample_digests, sample_reminders

WIDTHS = (360, 600, 900)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HEIGHTS = {"reminder": 1500, "one-each": 5000, "full": 7500, "long": 16_000}
"""The height of a picture by a part of its name; at 360 pixels the pages are nearly as long."""
SCHEMES = {"light": 1, "dark": 0}
"""Chromium's numbers of the colour schemes."""


def main() -> int:
    """Write the pictures. Return 1 if a contrast is below AA, and 2 without a browser."""
    parser = argparse.ArgumentParser(prog="make looks")
    parser.add_argument("--folder", type=Path, default=Path("build/looks"))
    folder = parser.parse_args().folder
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("make looks needs Chromium (Debian: apt-get install chromium)", file=sys.stderr)
        return 2
    pictures.draw(browser)
    folder.mkdir(parents=True, exist_ok=True)
    weak = 0
    for name, message in messages():
        size = len(message.html.encode())
        for scheme in SCHEMES:
            found = take_picture(browser, message, folder / f"{name}-{scheme}.png", scheme=scheme)
            weak += sum(ratio < 4.5 for ratio, _ in found)
            lowest, text = min(found)
            print(f"{name:24} {scheme:5} {size / 1000:6.1f} kB  lowest contrast {lowest:5.2f}  {text[:40]!r}")
    return 1 if weak else 0


def messages() -> Iterator[tuple[str, RenderedMessage]]:
    """Yield the messages with names for their pictures."""
    for language in LANGUAGES:
        for days_left in (60, 1, 0, -1, -14):
            wanted = {"days_left": days_left, "paused": days_left < 0, "repeat": days_left == 0}
            sample = next(words for words in sample_reminders(language) if words.items() >= wanted.items())
            words = sample | {"name": "Kari Nordmann"}
            page = OUR_TEMPLATES.render("reminder", words=words)
            yield f"reminder-{language}-{days_left}", page
        for name, words in zip(("full", "one-each", "long"), sample_digests(language), strict=False):
            page = OUR_TEMPLATES.render("digest", words=words)
            yield f"digest-{language}-{name}", page


def take_picture(browser: str, message: RenderedMessage, picture: Path, *, scheme: str) -> list[tuple[float, str]]:
    """Show the page in frames, because a window cannot be as narrow as a phone; return its contrasts."""
    height = next(pixels for part, pixels in HEIGHTS.items() if part in picture.name)
    frame = f'<iframe srcdoc="{html.escape(message.html)}" style="border: 0; height: {height - 20}px'
    frames = "".join(f'{frame}; width: {width}px"></iframe> ' for width in WIDTHS)
    page = f'<meta name="color-scheme" content="light dark"><body style="margin: 8px">{frames}'
    with tempfile.TemporaryDirectory() as scratch:
        document = Path(scratch, "page.html")
        document.write_text(page, encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={scratch}/profile", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
        options = [f"--screenshot={picture.resolve()}", f"--window-size={sum(WIDTHS) + 60},{height}"]
        subprocess.run([*command, *options, document.as_uri()], check=True, capture_output=True, timeout=120)
        document.write_text(message.html, encoding="utf-8")
        return contrasts(command, document)


if __name__ == "__main__":
    sys.exit(main())
