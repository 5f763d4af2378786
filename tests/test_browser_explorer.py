"""The table of every number in headless Chromium: filters, sorting, comparisons, keyboard, phone, print."""

import pandas as pd
import pytest
from test_explorer import a_run, runs

import gmreport as report
from gmlib.files import write_atomically
from gmreport.cards import DOWNLOADS, picture

STATIC = ["gmlib.css", "explorer.css", "explorer.js"]
RUNS = [a_run("random", seed, [50.0 + seed] * 10) for seed in (0, 1)]


@pytest.fixture(scope="module")
def html():
    results = pd.concat(
        [
            runs("DC", [91.6, 91.7, 91.8]), runs("MD", [92.0, 92.1, 92.3]), runs("random", [50.0, 51.0]),
            runs("MD", [70, 71], dataset="FashionMNIST", budget="lite", networks=5),
        ]
    )  # fmt: skip
    stored = report.Runs(RUNS)
    found = report.judge_claims(results)
    claims = report.claims_in_words(results, found, pd.DataFrame())
    parts = [
        report.message(found, claims).data,
        report.claims_matrix(claims, stored.short).data,
        '<h2 id="every-number">Every number</h2>',
        report.Explorer(found, results, stored)._repr_html_(),
        stored.section().data,
        report.not_run_table(found).data,
    ]
    return f'<main class="bd-article">{"".join(parts)}</main>'


@pytest.fixture
def opened(page, html, complaints, tmp_path):
    """Opens the page, beside its pictures; at the end nothing went wrong and the page does not scroll sideways."""
    drivers = []
    for run in RUNS:
        write_atomically(tmp_path / DOWNLOADS / f"{run.name}.png", picture(run))

    def opened(**options):
        driver = page(html, static=STATIC, **options)
        drivers.append(driver)
        return driver

    yield opened
    for driver in drivers:
        wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        scrolled, shown = driver.execute_script(wide)
        assert scrolled <= shown
    assert complaints() == []


def rows(driver):
    """[verdict, name, words of the drawing, index] of the rows that are shown."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.gm-explorer tbody tr')].filter(r => r.offsetParent !== null).map(r =>"
        "[r.cells[0].innerText.trim(), r.cells[1].firstChild.textContent.trim(),"
        " r.querySelector('.gm-drawn').innerText, Number(r.dataset.i)])"
    )


def show_all(driver):
    driver.execute_script("document.querySelectorAll('.gm-controls button')[1].click()")


def choose(driver, label, value):
    driver.execute_script(
        "const s = [...document.querySelectorAll('.gm-controls label')].find(l => l.firstChild.textContent === "
        "arguments[0]).querySelector('select'); s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
        label,
        value,
    )


def count(driver):
    return driver.execute_script("return document.querySelector('.gm-controls output').textContent")


def test_filters_and_sorting(opened):
    driver = opened()
    # DC is printed twice, MD three times (FashionMNIST, and Tables 3 and 4), random once, steps twice.
    assert len(rows(driver)) == 8 and count(driver) == "8 of 187 numbers"
    choose(driver, "Data set", "MNIST")
    choose(driver, "Sort by", "ours")
    names = [name for _, name, *_ in rows(driver)]
    assert names == ["random images", "DC", "DC", "MD", "MD, to convnet"]
    driver.execute_script("document.querySelector('.gm-controls button').click()")
    assert rows(driver)[0][1].startswith("MD")
    choose(driver, "Images per class", "50")
    assert rows(driver) == [] and "nothing fits" in count(driver)
    show_all(driver)
    assert [i for *_, i in rows(driver)] == list(range(187)) and count(driver) == "187 of 187 numbers"


def test_the_difference_to_another_method(opened):
    driver = opened()
    show_all(driver)
    choose(driver, "Compare with", "DC")
    drawn = {i: words for *_, words, i in rows(driver)}
    claims = list(report.judge_claims(pd.DataFrame(columns=report.claims.readback.COLUMNS))["claim"])
    md = drawn[claims.index("table3-mnist-1-md")]
    assert "above" in md and "ours +0.43" in md and "paper +0.2" in md
    fashion = drawn[claims.index("table3-fashionmnist-1-md")]
    assert fashion.strip() == "paper +0.9", "DC was not run there"
    assert drawn[claims.index("table3-mnist-1-dc")].strip() == ""
    choose(driver, "Sort by", "difference")
    assert "below" in rows(driver)[0][2] or "paper" in rows(driver)[0][2]
    choose(driver, "Compare with", "")
    assert all(words.strip(" ‹›\n") == "" for *_, words, _ in rows(driver))
    nets = driver.execute_script("return document.querySelectorAll('.gm-explorer .gm-net').length")
    assert nets == 30 * 2 + 30 * 2 + 10, "the drawings are back; random images are beyond the axis"


def test_by_keyboard(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    driver = opened()
    show_all(driver)
    select = driver.find_element(By.CSS_SELECTOR, ".gm-controls select")
    select.send_keys("S")  # SVHN
    assert driver.execute_script("return document.activeElement.value") == "SVHN"
    assert len(rows(driver)) == 35
    head = driver.find_elements(By.CSS_SELECTOR, ".gm-explorer thead button")[3]
    head.send_keys(Keys.ENTER)
    head.send_keys(Keys.ENTER)
    sort = "return document.querySelectorAll('.gm-explorer thead th')[3].getAttribute('aria-sort')"
    assert driver.execute_script(sort) == "descending" and rows(driver)[0][1] == "whole training set"
    claim = driver.find_element(By.CSS_SELECTOR, "#claim-md-beats-dc > summary")
    claim.send_keys(Keys.ENTER)
    assert driver.execute_script("return document.querySelector('#claim-md-beats-dc').open")


def test_a_count_shows_its_numbers_and_a_link_opens_its_run(opened):
    driver = opened()
    driver.execute_script("document.querySelector('.gm-totals a[data-outcome=\"differs\"]').click()")
    shown = rows(driver)
    assert shown and all("differs" in verdict for verdict, *_ in shown)
    driver.execute_script("document.querySelector('.gm-explorer a[href^=\"#run-\"]').click()")
    driver.implicitly_wait(0)
    for _ in range(50):
        if driver.execute_script("return document.querySelector('.gm-run-group').open"):
            break
    assert driver.execute_script("return document.querySelector('.gm-run-group').open")


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_the_verdict_and_the_name_are_in_sight(opened, dark):
    driver = opened(width=390, height=844, dark=dark)
    show_all(driver)
    places = driver.execute_script(
        "return [...document.querySelectorAll('.gm-explorer tbody tr, .gm-claim > summary')].map(r => "
        "[r.querySelector('.gm-verdict'), r.querySelector('th, .gm-sentence')].map(c => { const b = "
        "c.getBoundingClientRect(); return [b.left, b.right, b.height] }))"
    )
    assert len(places) == 187 + 25
    assert all(0 <= left < right <= 390 and height > 0 for row in places for left, right, height in row)
    small = driver.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => e.offsetParent && e.firstChild && "
        "e.firstChild.nodeType === 3 && e.innerText.trim() && parseFloat(getComputedStyle(e).fontSize) < 12).length"
    )
    assert small == 0


def test_without_a_script_and_in_print_every_number_is_there(opened):
    driver = opened(script=False)
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert len(rows(driver)) == 187
    assert not driver.execute_script("return document.querySelector('.gm-controls').offsetParent")
    driver = opened()
    assert len(rows(driver)) < 187
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert len(rows(driver)) == 187
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
