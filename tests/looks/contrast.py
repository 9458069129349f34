"""The colours of the texts of a page, light and dark, and their contrast (WCAG 2.2, 1.4.3)."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

VOID = {"br", "meta", "link", "img", "hr", "input"}


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours such as ``#0b4a8f``, from 1 to 21.

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    dark, light = sorted(map(_luminance, (one, other)))
    return round((light + 0.05) / (dark + 0.05), 2)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


class Colours(HTMLParser):
    """Finds the colour and background of each text on a page."""

    def __init__(self, page: str, *, dark: bool) -> None:
        super().__init__()
        self._rules = _dark_rules(page) if dark else []
        self._stack: list[tuple[str, str, str, tuple[str, ...]]] = []
        self.found: dict[tuple[str, str], str] = {}
        """An example of a text by colour and background."""
        self.feed(page.partition("<body")[1] + page.partition("<body")[2])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        attributes = dict(attrs)
        names = (tag, *(f".{name}" for name in (attributes.get("class") or "").split()))
        _, colour, ground, above = self._stack[-1] if self._stack else ("", "#000000", "#ffffff", ())
        style = attributes.get("style") or ""
        declared = dict(re.findall(r"(?:^|;)\s*(color|background): (#[0-9a-f]{6})", style))
        for selector, rule in self._rules:
            first, _, last = selector.rpartition(" ")
            if last in names and (not first or first in above):
                declared |= rule
        colour, ground = declared.get("color", colour), declared.get("background", ground)
        if "display: none" in style:
            colour = ""
        self._stack.append((tag, colour, ground, (*above, *names)))

    def handle_endtag(self, tag: str) -> None:
        while self._stack and self._stack.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if data.strip() and self._stack and self._stack[-1][1]:
            _, colour, ground, _ = self._stack[-1]
            self.found.setdefault((colour, ground), data.strip())


def _dark_rules(page: str) -> list[tuple[str, dict[str, str]]]:
    """Return selector and colours of each rule for dark mode, in the order of the page."""
    block = re.search(r"@media \(prefers-color-scheme: dark\) \{(.*?)\n\}", page, re.DOTALL)
    rules = []
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", block[1] if block else ""):
        colours = dict(re.findall(r"(color|background): (#[0-9a-f]{6})", body))
        rules += [(selector.strip(), colours) for selector in selectors.split(",")]
    return rules


def contrasts(page: str, *, dark: bool) -> Iterator[tuple[float, str, str, str]]:
    """Yield the contrast, the colour, the background and an example of each pair of colours on a page."""
    for (colour, ground), text in Colours(page, dark=dark).found.items():
        yield contrast(colour, ground), colour, ground, text
