"""Look at the built site in a real browser: ``python docs/check.py docs/_build/html``.

Every page is loaded by headless Chromium from a local server. It fails if a page writes an error to the console, if an
equation is missing, in error or left as TeX, if a link inside the site leads nowhere, if an image does not load, or if
the search finds nothing. First the same checks must fail on pages that are broken on purpose: a check that cannot fail
proves nothing.
"""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

_TEX = re.compile(r"\\(?:frac|sum|text|begin|sigma|delta|left|mathrm|operatorname|qquad)\b|\\[()\[\]]")
_CONSOLE = re.compile(r"CONSOLE[:(]\d+\)?\]\s*(.*)")
_HARMLESS = re.compile(r"^\"(?:Autofocus|%c)")


class Page(HTMLParser):
    """What is checked of one page: equations asked for and drawn, text outside code, anchors, links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.asked = self.drawn = 0
        self.text: list[str] = []
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.images: list[str] = []
        self.errors: list[str] = []
        self._silent: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count what stands in the tag."""
        given = {name: value or "" for name, value in attrs}
        classes = given.get("class", "").split()
        self.asked += tag in ("div", "span") and "math" in classes
        self.drawn += tag == "mjx-container"
        if given.get("data-mml-node") == "merror":
            self.errors.append(given.get("data-mjx-error", "unknown"))
        if given.get("data-mml-node") == "mtext" and given.get("fill") == "red":
            self.errors.append("a command that MathJax does not know, drawn red")
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "img":
            self.images.append(given.get("src", ""))
        if tag in ("script", "style", "pre", "code", "mjx-container", "title"):
            self._silent.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Text counts again after a tag whose text does not."""
        if self._silent and self._silent[-1] == tag:
            self._silent.pop()

    def handle_data(self, data: str) -> None:
        """Keep the text that a reader sees."""
        if not self._silent:
            self.text.append(data)


def chromium() -> str:
    """The browser.

    Raises:
        SystemExit: If there is none.
    """
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return name
    raise SystemExit("docs/check.py needs Chromium and found none; on Debian: apt-get install -y chromium")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The folder as a site, while the context lasts; gives its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def load(address: str) -> tuple[str, list[str]]:
    """A page as it stands after its scripts have run, and what it wrote to the console."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
            f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--window-size=1200,900",
            "--virtual-time-budget=30000", "--dump-dom", address,
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if run.returncode or not run.stdout.strip():
        raise RuntimeError(f"Chromium could not load {address}:\n{run.stderr[-2000:]}")
    said = [match[1] for line in run.stderr.splitlines() if (match := _CONSOLE.search(line))]
    return run.stdout, [line for line in said if not _HARMLESS.match(line)]


def problems(address: str, folder: Path) -> list[str]:
    """What is wrong with the page at an address, whose site stands in a folder."""
    html, console = load(address)
    page = Page(html)
    found = [f"console: {line}" for line in console]
    if page.asked != page.drawn:
        found.append(f"{page.asked} equations, {page.drawn} of them drawn")
    found += [f"equation in error: {error}" for error in page.errors]
    found += [f"TeX left in the text: {line.strip()[:80]}" for line in page.text if _TEX.search(line)]
    # What the server has is what stands in the folder.
    for link in page.links:
        target, fragment = urldefrag(urljoin(address, link))
        if urlsplit(target).netloc != urlsplit(address).netloc or link.startswith("javascript:"):
            continue
        path = folder / unquote(urlsplit(target).path).lstrip("/")
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            found.append(f"broken link {link}")
        elif fragment and path.suffix == ".html" and unquote(fragment) not in anchors(path):
            found.append(f"link to a place that is not there: {link}")
    for source in page.images:
        path = folder / unquote(urlsplit(urljoin(address, source)).path).lstrip("/")
        if not source.startswith("data:") and not path.is_file():
            found.append(f"missing image {source}")
    return found


@functools.cache
def anchors(path: Path) -> set[str]:
    """The places in a page that a link can lead to."""
    return Page(path.read_text()).anchors


_BROKEN = {
    "console": "<script>throw new Error('on purpose')</script>",
    "not drawn": '<div class="math notranslate">\\[\\frac{1}{2}\\]</div>',
    "link": '<a href="nowhere.html">nowhere</a>',
    "place": '<a href="#nowhere">nowhere</a>',
    "image": '<img alt="nothing" src="nothing.png">',
}


def must_fail(site: Path) -> list[str]:
    """The pages broken on purpose in which nothing was found."""
    mathjax = next(site.rglob("tex-svg-full.js"))
    broken = dict(_BROKEN)
    for what, tex in (("equation in error", "\\frac{1}"), ("unknown command", "\\notacommand")):
        equation = f'<div class="math notranslate">\\[{tex}\\]</div>'
        broken[what] = f'<script src="mathjax.js" defer></script>{equation}'
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(mathjax, folder / "mathjax.js")
        icon = '<link rel="icon" href="data:,">'
        (folder / "fine.html").write_text(f"<!doctype html>{icon}<p id=here><a href='#here'>fine</a></p>")
        with serving(folder) as address:
            if wrong := problems(f"{address}/fine.html", folder):
                missed.append(f"a page without fault was refused: {wrong}")
            for what, body in broken.items():
                (folder / "broken.html").write_text(f"<!doctype html>{icon}<body>{body}</body>")
                anchors.cache_clear()
                if not problems(f"{address}/broken.html", folder):
                    missed.append(f"nothing found in a page with a fault: {what}")
    anchors.cache_clear()
    return missed


def main(site: Path) -> int:
    """Check every page; the number of pages with a fault."""
    pages = sorted(path.relative_to(site) for path in site.rglob("*.html") if "_static" not in path.parts)
    if not pages:
        raise SystemExit(f"{site} holds no pages: build them first, sphinx-build docs {site}")
    if missed := must_fail(site):
        raise SystemExit("the check itself is broken:\n" + "\n".join(missed))
    print("the pages broken on purpose were all refused")
    faulty = 0
    with serving(site) as address, ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda page: problems(f"{address}/{page.as_posix()}", site), pages)
        for page, wrong in zip(pages, found, strict=True):
            faulty += bool(wrong)
            print(f"{'FAULT' if wrong else 'ok':6}{page}", *wrong, sep="\n      " if wrong else "")
        results, _ = load(f"{address}/search.html?q=importance")
        hits = len(re.findall(r'<li[^>]*class="[^"]*kind-', results)) or results.count('class="search-summary"')
        print(f"search for 'importance': {hits or 'no'} results")
        faulty += not hits
    print(f"{len(pages)} pages, {faulty} with a fault")
    return faulty


if __name__ == "__main__":
    sys.exit(min(1, main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/_build/html"))))
