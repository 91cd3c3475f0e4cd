"""The site builds without a warning, has every public name, and needs nothing that is not part of it.

The last is asked of a browser, where there is one: `pip install -e '.[docs,browser]'`, and Chromium or Chrome.
"""

import functools
import http.server
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from scripts import public_api
from tests.test_docs import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# No sandbox, because containers have none; the rest keeps the browser from calling home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Whose names are all promised. What these four export is in flowkit itself, or beside what raises it.
ELSEWHERE = {"flowkit.bijectors", "flowkit.distributions", "flowkit.errors", "flowkit.surjections"}
MODULES = [name for name in public_api.MODULES if name not in ELSEWHERE]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """What the build wrote, and what it said."""
    for name in ("material", "mkdocstrings", "nbconvert"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("needs what makes the site: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # The theme advertises its successor on standard error, as a warning that is no fault of a page.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return folder, subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(build):
    folder, run = build
    assert run.returncode == 0, run.stderr
    return folder


def pages(site):
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


def test_the_build_is_clean(build):
    folder, run = build
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr and "ERROR" not in run.stderr
    assert len(pages(folder)) >= 50


def test_every_public_name_has_its_place(site):
    anchors = Counter(
        anchor
        for page in (site / "api").glob("*.html")
        for anchor in re.findall(r'id="(flowkit[\w.]*)"', page.read_text())
    )
    modules = {path: importlib.import_module(path) for path in MODULES}
    for path, module in modules.items():
        for name in module.__all__:
            thing = getattr(module, name)
            if not inspect.ismodule(thing):  # its names are asked for themselves
                # What can be reached in two ways stands on a page once.
                ways = [f"{other}.{name}" for other in modules if getattr(modules[other], name, None) is thing]
                assert any(anchors[way] for way in ways), f"{path}.{name} is on no page"
    assert [anchor for anchor, count in anchors.items() if count > 1] == []


def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    for page in pages(site):
        assert loads.findall(page.read_text()) == [], page.name


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser, one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A browser's page, and what goes wrong on it."""

    def __init__(self, browser, home, width):
        self.page, self.faults = browser.new_page(viewport={"width": width, "height": 900}), []
        self.page.on("request", lambda r: r.url.startswith((home, "data:", "blob:")) or self.faults.append(r.url))
        self.page.on("response", lambda r: r.status < 400 or self.faults.append(f"{r.status} {r.url}"))
        # What is still on its way when the page is left is aborted, and no fault.
        self.page.on("requestfailed", lambda r: "ABORTED" in str(r.failure) or self.faults.append(f"failed: {r.url}"))
        self.page.on("console", lambda m: m.type != "error" or self.faults.append(m.text))
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))


@pytest.mark.parametrize("width", [1440, 390])
def test_pages_are_whole_in_a_browser(site, address, browser, width):
    """No request leaves the site, no error is logged, images and formulas are there, and nothing is cut off."""
    watched = Watched(browser, address, width)
    page, found, formulas = watched.page, {}, 0
    for path in pages(site):
        name = path.relative_to(site).as_posix()
        page.goto(f"{address}/{name}")
        page.evaluate("document.fonts.ready.then(() => true)")
        faults, watched.faults[:] = [*watched.faults], []
        faults += page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
        faults += page.evaluate("[...document.querySelectorAll('.katex-error')].map(e => e.textContent)")
        faults += page.evaluate(
            "[...document.querySelectorAll('.arithmatex:not(:has(.katex))')].map(e => e.textContent)"
        )
        formulas += page.evaluate("document.querySelectorAll('.katex-html').length")
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        faults += [f"{over} pixels wider than the screen"] if over > 0 else []
        found |= {name: faults} if faults else {}
    assert found == {}, found
    assert formulas >= 20


@pytest.mark.parametrize("way", ["served", "from the disk"])
def test_search_finds(site, address, browser, way):
    home = address if way == "served" else site.as_uri()
    watched = Watched(browser, home, 1440)
    watched.page.goto(f"{home}/index.html")
    box = watched.page.locator("input.md-search__input")
    box.click()
    box.press_sequentially("dequantization")
    watched.page.wait_for_selector(".md-search-result__item a", state="attached")
    links = watched.page.eval_on_selector_all(".md-search-result__item a", "all => all.map(a => a.href)")
    assert any(Path(link.partition("?")[0].partition("#")[0]).name == "dequantization.html" for link in links)
    assert watched.faults == []
