"""Headless Chromium for the tests test_browser_*.py. conftest.py loads these fixtures for every test file.

- `open_page(where, width=1280, height=900, dark=False, reduced_motion=False, media="", script=True)` opens a page of
  the built book ("claims.html"), an address, or a file (Path), and returns the driver.
- `page(html)` opens a page made of a string, with the same options. `static=["trainer.js", "trainer.css"]` adds files
  of book/_static.
- `complaints()` lists what went wrong since the last page was opened: errors in the console, failed requests,
  requests to another host.
- `built_book` is the folder of the built book; `book_address` serves it by HTTP.
- `driver` is the selenium driver of the whole test run, for everything else.

A test that uses one of them is skipped where selenium, Chromium or its driver is missing, and the summary says so in
one line. No page reaches another host.
"""

import functools
import html as html_module
import json
import os
import shutil
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

STATIC = Path(__file__).parent.parent / "book" / "_static"
BUILT = Path(os.environ.get("GMLIB_BUILT_BOOK") or Path(__file__).parent.parent / "book" / "_build" / "html")
FLAGS = [
    "--headless=new",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
]
BLANK = "about:blank"
LOCAL = ("file", "data", "blob", "about", "chrome")
SKIPPED = "no browser tests"  # how the reason of every skip begins


def find_program(*names):
    return next(filter(None, map(shutil.which, names)), None)


def start_driver(download_folder):
    """Start Chromium. Skip the test with one line if something for it is missing."""
    try:
        from selenium import webdriver
    except ImportError:
        pytest.skip(f"{SKIPPED}: selenium is not installed (pip install '.[dev]')")
    browser = find_program("chromium", "chromium-browser", "google-chrome")
    driver = find_program("chromedriver")
    if not (browser and driver):
        pytest.skip(f"{SKIPPED}: Chromium or its driver is missing (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(download_folder)})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_page_load_timeout(60)
    found.set_script_timeout(60)
    return found


@pytest.fixture(scope="session")
def download_folder(tmp_path_factory):
    """Where the browser of `driver` puts downloads."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def driver(download_folder):
    """One headless Chromium for the whole test run."""
    driver = start_driver(download_folder)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def built_book():
    """The folder of the built book."""
    if not (BUILT / "intro.html").is_file():
        pytest.skip(f"{SKIPPED} of the pages: the book is not built (make book)")
    return BUILT


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="session")
def book_address(built_book):
    """The address http://127.0.0.1:PORT at which the built book is served."""
    handler = functools.partial(QuietHandler, directory=str(built_book))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def set_window(driver, width=1280, height=900, dark=False, reduced_motion=False, media=""):
    """Give the window a size, light or dark, and screen (media="") or paper (media="print")."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    features = {
        "prefers-color-scheme": "dark" if dark else "light",
        "prefers-reduced-motion": "reduce" if reduced_motion else "no-preference",
    }
    listed = [{"name": name, "value": value} for name, value in features.items()]
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": width < 600})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": listed})


def show(driver, address, script=True, **window):
    """Open an address in such a window, with or without scripts. Forget what was logged before."""
    driver.get(BLANK)
    read_logs(driver)
    set_window(driver, **window)
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    driver.get(address)
    return driver


def wait_until(is_true, seconds=20):
    """Wait until a function returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (found := is_true()):
        assert time.monotonic() < end, "the page did not do it in time"
        time.sleep(0.05)
    return found


def wait_for_maths(driver):
    """Wait until the equations of a page are drawn and its fonts are there."""
    driver.execute_async_script(
        "const done = arguments[0];"
        "Promise.resolve(window.MathJax?.startup?.promise).then(() => document.fonts.ready).then(() => done());"
    )


def read_logs(driver):
    """Read and clear the browser's logs. Returns what went wrong (see `complaints`) and the addresses asked for."""
    found = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    addresses = {}
    for entry in driver.get_log("performance"):
        if '"Network.' not in entry["message"]:
            continue
        message = json.loads(entry["message"])["message"]
        event, about = message["method"], message["params"]
        if event == "Network.requestWillBeSent":
            address = addresses[about["requestId"]] = about["request"]["url"]
            parts = urlsplit(address)
            if parts.scheme not in LOCAL and parts.hostname not in ("127.0.0.1", "localhost"):
                found.append(f"asks another host: {address[:200]}")
        elif event == "Network.loadingFailed" and not about.get("canceled"):
            found.append(f"failed: {addresses.get(about['requestId'], '?')[:200]} ({about['errorText']})")
        elif event == "Network.responseReceived" and about["response"]["status"] >= 400:
            found.append(f"failed: {about['response']['url'][:200]} ({about['response']['status']})")
    return list(dict.fromkeys(found)), list(dict.fromkeys(addresses.values()))


@pytest.fixture
def open_page(driver, request):
    """A function that opens a page of the built book, an address, or a file: see `set_window` for its options."""

    def open_page(where, **options):
        if isinstance(where, Path):
            where = where.resolve().as_uri()
        elif not urlsplit(where).scheme:
            where = urljoin(request.getfixturevalue("built_book").resolve().as_uri() + "/", where)
        return show(driver, where, **options)

    return open_page


@pytest.fixture
def page(driver, tmp_path):
    """A function that opens a page made of a string of HTML: see `set_window` for its options."""

    def page(html, static=(), **options):
        parts = []
        for name in static:
            address = html_module.escape((STATIC / name).resolve().as_uri())
            is_style = name.endswith(".css")
            parts.append(
                f'<link rel="stylesheet" href="{address}">' if is_style else f'<script src="{address}"></script>'
            )
        if "<html" not in html:
            theme = "dark" if options.get("dark") else "light"
            head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            html = (
                f'<!doctype html><html lang="en" data-theme="{theme}"><head>{head}<title>Page</title></head>'
                f"<body>{html}{''.join(parts)}</body></html>"
            )
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        return show(driver, file.as_uri(), **options)

    return page


@pytest.fixture
def complaints(driver):
    """A function that lists what went wrong since the last page was opened, and forgets it."""
    return lambda: read_logs(driver)[0]


def pytest_terminal_summary(terminalreporter):
    """Say in one line why tests were skipped. Without -rs pytest only prints their number."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = {
        report.longrepr[2].removeprefix("Skipped: ") for report in reports if isinstance(report.longrepr, tuple)
    }
    for reason in sorted(reason for reason in reasons if reason.startswith(SKIPPED)):
        terminalreporter.write_line(reason)
