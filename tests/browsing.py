"""A page in, what headless Chromium makes of it at several widths out. Needs Debian's ``chromium``, or skips."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

#: Measures the page that it is part of, clicks through its first table, and tells the page around it.
PROBE = """
const blocked = [];
document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.violatedDirective));
addEventListener("load", () => {
  const images = [...document.images];
  const width = document.documentElement.clientWidth;
  const name = (element) => `${element.tagName} ${element.textContent.trim().slice(0, 40)}`;
  const hidden = (element) => element.closest(".skip") || getComputedStyle(element).display === "none";
  const within = [...document.querySelectorAll("body *")].filter((element) => !hidden(element));
  const box = (element) => element.getBoundingClientRect();
  const cards = [...document.querySelectorAll(".card, .facts div, .failed, h2, nav")].map((card) => [card, box(card)]);
  const overlapping = cards.flatMap(([one, a], i) => cards.slice(i + 1)
    .filter(([other]) => !one.contains(other))
    .filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)
    .map(([other]) => `${name(one)} and ${name(other)}`));
  const table = document.querySelector("table");
  const at = [...table.tHead.rows[0].cells].findIndex((header) => header.textContent.startsWith("Test accuracy"));
  const header = table.tHead.rows[0].cells[at];
  const values = () => [...table.tBodies[0].rows].map((row) => row.cells[at].dataset.value);
  const sorted = [0, 1, 2].map((click) => {
    if (click) header.querySelector("button").click();
    return [header.getAttribute("aria-sort"), values()];
  });
  parent.postMessage({
    width,
    scrollWidth: document.documentElement.scrollWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    blocked,
    broken: images.filter((image) => !image.naturalWidth).length,
    darkPictures: [...document.querySelectorAll("picture")]
      .map((each) => each.querySelector("img").currentSrc === each.querySelector("source").srcset),
    outside: within.filter((element) => box(element).right > width + 1 || box(element).left < -1).map(name),
    cut: [...document.querySelectorAll(".scroll, td, th, dd, figure")]
      .filter((element) => element.scrollWidth > element.clientWidth + 1).map(name),
    overlapping,
    sorted,
    buttons: [...document.querySelectorAll("thead button")].every((button) => box(button).width > 0),
  }, "*");
});
"""


def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    return found


def probed(page: Path, folder: Path, *, widths: tuple[int, ...], dark: bool) -> list[dict[str, Any]]:
    """What the probe tells of the page at each width; the page's policy allows only its own code and the probe."""
    browser = chromium()
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8").replace("; script-src '", f"; script-src 'sha256-{digest}' '", 1)
    text = text.replace("<style>", f"<script>{PROBE}</script><style>", 1)
    # As documents in the page around them, so that they are in its process, whose end of work is waited for.
    frames = [f'<iframe srcdoc="{html.escape(text)}" width="{width}" height="900"></iframe>' for width in widths]
    around = folder / "around.html"
    around.write_text(
        '<meta charset="utf-8"><body><script>addEventListener("message", (event) => { const told = '
        'document.createElement("pre"); told.textContent = JSON.stringify(event.data); document.body.append(told); '
        f"}})</script>{''.join(frames)}",
        encoding="utf-8",
    )
    flags = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1600,1000", "--virtual-time-budget=10000", "--dump-dom",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]  # fmt: skip
    done = subprocess.run([browser, *flags, around.as_uri()], capture_output=True, text=True, timeout=90, check=True)
    told = [json.loads(html.unescape(each)) for each in re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)]
    assert len(told) == len(widths), done.stderr[-2000:]
    return sorted(told, key=lambda each: each["width"])
