"""The page of condensed sets in a browser: pictures, the switch, downloads, folded cards, on a phone and in print."""

import hashlib
import time

import numpy as np
import pytest

import gmlib as gm

pytest.importorskip("selenium", reason="no browser tests: selenium is not installed (pip install '.[dev]')")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PAGE = "sets.html"


@pytest.fixture
def sets_page(built_book):
    if not (built_book / "_static" / "sets").is_dir():
        pytest.skip("no browser tests of the cards: the built book is older than they are (make book)")
    return built_book / PAGE


def all_of(driver, selector):
    return driver.find_elements(By.CSS_SELECTOR, selector)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_first_screen_shows_the_sets(open_page, complaints, sets_page, width, dark):
    driver = open_page(sets_page, width=width, height=844, dark=dark)
    best = all_of(driver, ".gm-take-best")
    sizes = [card.find_element(By.TAG_NAME, "h3").text for card in best]
    assert sizes and len(set(sizes)) == len(sizes), "one for each data set and size"
    assert best[0].location["y"] < 844
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    first = best[0].find_element(By.TAG_NAME, "img")
    assert driver.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", first)
    names = best[0].find_elements(By.CSS_SELECTOR, ".gm-take-columns span")
    columns = first.size["width"] / len(names)
    for i, name in enumerate(names):
        middle = name.location["x"] + name.size["width"] / 2 - first.location["x"]
        assert i * columns < middle < (i + 1) * columns, "each name is above its column"
    assert not complaints()


def test_pictures_of_folded_cards_are_loaded_when_they_are_opened(open_page, sets_page):
    driver = open_page(sets_page)
    group = all_of(driver, ".gm-take-more")[-1]
    picture = group.find_element(By.TAG_NAME, "img")
    loaded = "return arguments[0].complete && arguments[0].naturalWidth > 0"
    assert not picture.is_displayed() and not driver.execute_script(loaded, picture)
    group.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    picture.location_once_scrolled_into_view  # noqa: B018
    end = time.monotonic() + 20
    while not driver.execute_script(loaded, picture):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert picture.is_displayed()


def test_the_switch_works_by_keyboard(open_page, sets_page):
    driver = open_page(sets_page)
    switches = all_of(driver, ".gm-take-best .gm-take-switch")
    if not switches:
        pytest.skip("no recommended set has several images per class")
    clipped, full = (switches[0].find_element(By.CSS_SELECTOR, f".gm-take-{kind}") for kind in ("clipped", "full"))
    assert clipped.is_displayed() and not full.is_displayed()
    switches[0].find_element(By.TAG_NAME, "input").send_keys(Keys.ARROW_RIGHT)
    assert full.is_displayed() and not clipped.is_displayed()
    driver = open_page(sets_page, media="print")
    switch = all_of(driver, ".gm-take-best .gm-take-switch")[0]
    assert all(figure.is_displayed() for figure in switch.find_elements(By.TAG_NAME, "figure"))


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_every_button_gives_its_file(open_page, sets_page, download_folder, request, scheme):
    where = sets_page if scheme == "file" else f"{request.getfixturevalue('book_address')}/{PAGE}"
    driver = open_page(where)
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(download_folder)})
    card = all_of(driver, ".gm-take-best")[0]
    name, buttons = card.get_attribute("id"), card.find_elements(By.CSS_SELECTOR, ".gm-take-button")
    got = [download_folder / f"{name}.{ending}" for ending in ("safetensors", "npz", "zip")]
    for button, path in zip(buttons, got, strict=True):
        path.unlink(missing_ok=True)
        button.send_keys(Keys.ENTER)
        end = time.monotonic() + 20
        while not path.is_file():
            assert time.monotonic() < end, f"{path.name} did not come"
            time.sleep(0.05)
        there = sets_page.parent / "_static" / "sets" / path.name
        assert path.read_bytes() == there.read_bytes()
    S = gm.SyntheticSet.load(got[0])
    with np.load(got[1]) as arrays:
        assert np.array_equal(arrays["images"], S.images.numpy())
    shown = card.find_element(By.CSS_SELECTOR, ".gm-take-fold dl").get_attribute("textContent")
    assert hashlib.sha256(got[0].read_bytes()).hexdigest() in shown


def test_a_citation_can_be_copied(open_page, sets_page):
    driver = open_page(sets_page)
    fold = all_of(driver, ".gm-take-best .gm-take-fold")[1]
    fold.find_element(By.TAG_NAME, "summary").click()
    assert fold.find_element(By.TAG_NAME, "pre").text.startswith("@misc{gmlib-")
    assert fold.find_elements(By.CSS_SELECTOR, "button.copybtn")


def test_the_page_is_light(sets_page):
    """With every picture, it stays below 3 MB."""
    pictures = (sets_page.parent / "_static" / "sets").glob("*.png")
    assert sets_page.stat().st_size + sum(path.stat().st_size for path in pictures) < 3_000_000
