"""The contrast of each visible text with its background in Chromium, as WCAG 2.2, 1.4.3 computes it."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

CONTRASTS = """
(() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const ground = (element) => {
    const colour = element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)";
    return colour === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : colour;
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const shown = [...document.querySelectorAll("body *")].filter((each) => each.getClientRects().length);
  return shown.filter((each) => hasText(each) && !each.disabled).map((each) => {
    const [one, other] = [light(getComputedStyle(each).color), light(ground(each))];
    return [Math.max(one, other) / Math.min(one, other), each.innerText];
  });
})()
"""
"""A list of contrasts, from 1 to 21, each with its text."""


def contrasts(command: list[str], document: Path) -> list[tuple[float, str]]:
    """Return the contrasts of a page in a file. The command is that of a headless Chromium."""
    script = f"<script>document.title = JSON.stringify({CONTRASTS})</script>"
    document.write_text(document.read_text(encoding="utf-8") + script, encoding="utf-8")
    done = subprocess.run([*command, "--dump-dom", document.as_uri()], check=True, capture_output=True, timeout=120)
    found = re.search(r"<title>(.*?)</title>", done.stdout.decode(), re.DOTALL)
    assert found is not None
    listed: list[Any] = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return [(ratio, text) for ratio, text in listed]
