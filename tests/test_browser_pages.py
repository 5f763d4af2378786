"""Every page of the built book in headless Chromium: wide and narrow, light and dark, from disk, by HTTP, on paper.

These tests look at what all pages share. The other files test_browser_*.py test what the script of one page does.
"""

import base64
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import pytest

HERE = Path(__file__).parent
LOOK = (HERE / "look_at_page.js").read_text("utf-8")
AXE = HERE / "node_modules" / "axe-core" / "axe.min.js"
MOST = 3_000_000  # bytes of a page and what it loads
PAPER = {"width": 688, "height": 972, "media": "print"}  # A4 without its margins, in pixels
SIZES = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}

FILES = [path.relative_to(browser.BUILT) for path in sorted(browser.BUILT.rglob("*.html"))]
PAGES = [path.as_posix() for path in FILES if "_static" not in path.parts and path != Path("index.html")]
each_page = pytest.mark.parametrize("name", PAGES or ["intro.html"])
# The pages of the API are made alike, and one of them is looked at in every way.
ALIKE = [name for name in PAGES if name.startswith(("api/", "genindex", "py-modindex")) and name != "api/runs.html"]
UNLIKE = [name for name in PAGES if name not in ALIKE] or ["intro.html"]
LOOKS = [(name, "wide") for name in ALIKE] + [(name, size) for name in UNLIKE for size in SIZES]


def look(driver, function):
    """What a function of look_at_page.js finds in the page."""
    browser.wait_for_maths(driver)
    return driver.execute_script(f"{LOOK}; return {function}();")


def violations(driver, *rules):
    """The serious and critical violations of axe-core's rules, of some of them, or of all "not" in a list."""
    if not AXE.is_file():
        return []
    browser.wait_for_maths(driver)
    driver.execute_script(AXE.read_text("utf-8"))
    ask = (
        f"{LOOK}; const [rules, done] = arguments; inaccessible(rules).then(done, (error) => done([String(error)]));"
    )
    return driver.execute_async_script(ask, rules)


def size_of(addresses):
    """How many bytes the files at some addresses have."""
    files = {Path(unquote(urlsplit(address).path)) for address in addresses if address.startswith("file:")}
    return sum(file.stat().st_size for file in files if file.is_file())


def test_the_rules_of_accessibility_are_there():
    if not AXE.is_file():
        pytest.skip(f"{browser.SKIPPED} of accessibility: axe-core is not installed (make tests/node_modules)")
    assert "axe" in AXE.read_text("utf-8")[:500]


@pytest.mark.parametrize(("name", "size"), LOOKS)
def test_everyone_can_read_a_page(open_page, name, size):
    driver = open_page(name, **SIZES[size])
    browser.wait_for_maths(driver)
    wrong, addresses = browser.read_logs(driver)
    assert wrong == []
    assert size_of(addresses) < MOST
    slow = () if size == "wide" else ("not", "color-contrast")  # colours are the same
    assert violations(driver, *slow) == []
    assert look(driver, "unreadable") == []
    assert look(driver, "tooWide") == []
    assert look(driver, "hiddenCells") == []


@pytest.mark.parametrize("name", UNLIKE)
def test_a_dark_page_is_as_good_and_so_is_paper(open_page, complaints, name):
    driver = open_page(name, dark=True, **SIZES["wide"])
    assert driver.execute_script("return document.documentElement.dataset.theme") == "dark"
    assert look(driver, "tooWide") == []
    assert violations(driver, "color-contrast") == []
    assert complaints() == []
    browser.set_window(driver, **PAPER)
    assert look(driver, "cutOnPaper") == []


@pytest.mark.parametrize("name", ["claims.html", "sets.html"])
def test_pictures_of_sets_have_no_frame_in_the_dark(open_page, name):
    """The theme puts a grey card behind pictures, and makes them darker."""
    styles = open_page(name, dark=True, **SIZES["phone"]).execute_script(
        "return [...document.querySelectorAll('.gm-picture img, .gm-take-pictures img')].map(getComputedStyle).map("
        "s => [s.backgroundColor, s.padding, s.filter].join())"
    )
    assert styles and set(styles) == {"rgba(0, 0, 0, 0),0px,none"}


@pytest.mark.parametrize(
    "name", ["intro.html", "claims.html", "sets.html", "notebooks/how.html", "notebooks/playground.html"]
)
def test_a_page_works_by_http(open_page, complaints, book_address, name):
    driver = open_page(f"{book_address}/{name}", dark=True, **SIZES["phone"])
    assert look(driver, "tooWide") == []
    assert complaints() == []


@each_page
def test_a_page_says_what_it_is_about(built_book, name):
    text = (built_book / name).read_text("utf-8")
    facts = dict(re.findall(r'<meta (?:name|property)="(description|og:[a-z:_]+)" content="([^"]*)"', text))
    assert 20 < len(facts["description"]) < 500 and facts["og:title"] and facts["og:description"]
    assert "@misc{jiang2022delving," in text and "@software{gmlib," in text
    if "og:image" in facts:
        assert (built_book / name).parent.joinpath(facts["og:image"]).is_file()


def test_printing_unfolds_and_lights_up_a_page_for_a_while(open_page):
    driver = open_page("intro.html", dark=True)
    folded = "document.querySelectorAll('main details:not([open])').length"
    state = f"return [{folded}, document.documentElement.dataset.theme]"
    folded, theme = driver.execute_script(state)
    assert folded > 0 and theme == "dark"
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert driver.execute_script(state) == [0, "light"]
    driver.execute_script("dispatchEvent(new Event('afterprint'))")
    assert driver.execute_script(state) == [folded, "dark"]
    printed = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF") and len(printed) > 20_000
    assert driver.execute_script(state) == [folded, "dark"]


def test_copied_code_is_the_code(open_page):
    """A long line is an element of its own, and one line when it is copied."""
    driver = open_page("api/runs.html")
    code = "const code = document.querySelector('main pre:has(.gm-line)');"
    driver.execute_script(code + "getSelection().selectAllChildren(code)")
    copied = driver.execute_script("return getSelection().toString()")
    assert copied.rstrip() == driver.execute_script(code + "return code.textContent").rstrip()


def test_the_search_works_from_disk(open_page, complaints):
    driver = open_page("search.html?q=condensation")
    found = "return document.querySelectorAll('#search-results li a').length"
    browser.wait_until(lambda: driver.execute_script(found) > 2)
    assert complaints() == []
