"""Tables, forest plots, figures and sliders in a real browser: by keyboard, on a phone, in print, without script."""

import numpy as np
import pandas as pd
import pytest

import gmreport as report
from gmlib.runs import readback

STYLE = ("gmlib.css",)
RIGHT = "\ue014"  # the arrow key


def accuracies(datasets=("one", "two"), ipcs=(1, 10, 50)):
    rng = np.random.default_rng(0)
    rows = [
        (dataset, ipc, method, "paper", seed, "convnet", net, 70 + i + rng.normal())
        for dataset in datasets
        for ipc in ipcs
        for i, method in enumerate(("random", "herding", "DC", "M", "MD"))
        for seed in (0, 1)
        for net in range(3)
    ]
    return pd.DataFrame(rows, columns=readback.COLUMNS)


@pytest.fixture(scope="module")
def results():
    return accuracies()


def visible(driver, selector):
    """Which of the elements are shown."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map(e => e.checkVisibility({visibilityProperty: true}))"
    )
    return driver.execute_script(script, selector)


def test_tabs_are_moved_by_keyboard_and_printed_all(page, results):
    table = report.accuracy_table(results)._repr_html_()
    driver = page(table + table, STYLE)
    assert visible(driver, ".gm-tab") == [True, False] * 2
    driver.find_element("css selector", ".gm-tabs input").send_keys(RIGHT)
    assert visible(driver, ".gm-tab") == [False, True, True, False], "the same table twice: two tables"
    assert all(visible(page(table, STYLE, media="print"), ".gm-tab"))
    driver = page(table, STYLE, script=False)
    assert visible(driver, ".gm-tab") == [True, False], "no script is needed"


def test_a_wide_table_keeps_its_first_column_in_sight_and_the_page_does_not_scroll(page):
    table = report.accuracy_table(accuracies(datasets=["one"], ipcs=(1, 2, 5, 10, 20, 50)))
    driver = page(table._repr_html_(), STYLE, width=390, height=844)
    scrolled, first, page_width = driver.execute_script(
        "const box = document.querySelector('.gm-scroll'); box.scrollLeft = 200;"
        "return [box.scrollLeft, box.querySelector('tbody th').getBoundingClientRect().left,"
        " document.documentElement.scrollWidth]"
    )
    assert scrolled > 100 and 0 <= first < 20 and page_width <= 390


def test_a_verdict_is_in_sight_on_a_phone(page):
    names = [f"a rather long name of a number, {i}" for i in range(3)]
    columns = ["paper", "ours", "interval", "more", "outcome"]
    cells = {(name, column): ["91.7±0.5", "n=20, 2 sets"] for name in names for column in columns}
    cells |= {(name, "outcome"): ["reproduced"] for name in names}
    driver = page(report.Table(names, columns, cells, "C.", "number")._repr_html_(), STYLE, width=390, height=844)
    edges = driver.execute_script(
        "return [...document.querySelectorAll('td .gm-sign')].map(e => e.getBoundingClientRect().right)"
    )
    assert len(edges) == 3 and max(edges) <= 390


@pytest.mark.parametrize("width", [390, 1280])
def test_a_forest_plot_fits_and_its_drawings_are_in_line(page, results, width):
    found = report.forest(results, [("MD", "DC"), ("MD", "random"), ("M", "herding")], caption="What it compares.")
    driver = page(found._repr_html_(), STYLE, width=width, height=844)
    page_width, lefts, widths = driver.execute_script(
        "const zeros = [...document.querySelectorAll('.gm-zero')].map(e => e.getBoundingClientRect());"
        "const plots = [...document.querySelectorAll('tbody .gm-plot')].map(e => e.getBoundingClientRect().width);"
        "return [document.documentElement.scrollWidth, zeros.map(z => Math.round(z.left)), plots]"
    )
    assert page_width <= width and len(set(lefts)) == 1 and min(widths) > 100


def test_letters_of_a_figure_can_be_read_on_a_phone(page, results):
    html = report.accuracy_figure(results).to_html("Accuracies")
    driver = page(html, STYLE, width=390, height=844)
    page_width, sizes = driver.execute_script(
        "const scale = m => Math.hypot(m.a, m.b);"
        "const size = e => parseFloat(getComputedStyle(e).fontSize) * scale(e.getScreenCTM());"
        "return [document.documentElement.scrollWidth, [...document.querySelectorAll('svg text')].map(size)]"
    )
    assert page_width <= 390 and len(sizes) > 20 and min(sizes) >= 11.9


def test_a_figure_takes_the_colours_of_a_dark_page(page, results):
    html = report.accuracy_figure(results).to_html("Accuracies")
    script = (
        "const use = [...document.querySelectorAll('svg use')].find(e => e.outerHTML.includes('--gm-DC'));"
        "return getComputedStyle(use).fill"
    )
    assert page(html, STYLE).execute_script(script) == "rgb(51, 34, 136)"
    assert page(html, STYLE, dark=True).execute_script(script) == "rgb(169, 155, 255)"
    assert page(html, STYLE, dark=True, media="print").execute_script(script) == "rgb(51, 34, 136)", "paper is white"


def test_a_slider_moves_its_frames_and_the_dot_on_the_curve(page, complaints):
    trace = {k: (np.full((2, 1, 3, 3), k / 10), [50.0 + k, 52.0 + k]) for k in (0, 2, 9)}
    html = report.trace_slider(trace, 2, method="M", titles=["a", "b"])._repr_html_()
    driver = page(html, STYLE)
    place = "return document.querySelector('[data-places]').getBoundingClientRect().left"
    end = driver.execute_script(place)
    assert visible(driver, ".gm-frame") == [False, False, True] and not any(visible(driver, ".gm-captions"))
    slider = driver.find_element("css selector", "input[type=range]")
    slider.send_keys("\ue011")  # Home
    assert visible(driver, ".gm-frame") == [True, False, False] and driver.execute_script(place) < end - 100
    assert slider.get_attribute("aria-valuetext") == "0" and complaints() == []
    driver = page(html, STYLE, script=False)
    assert visible(driver, ".gm-frame") == [False, False, True] and all(visible(driver, ".gm-captions"))
