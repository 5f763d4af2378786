"""The plane of gradients in a real browser: its numbers are those of gmlib.how, and hand and keyboard move it."""

import math

import pytest
import torch

import gmreport as report
from gmlib import how

STARTS = {"short and turned": (0.25, 0.45), "short": (0.25, 0.0)}
POINTS = [(0.25, 0.45), (0.25, 0.0), (-0.5, 0.3), (1.2, -0.7), (0.001, 0.002), (1.0, 0.0), (-1.0, 0.0)]
EXPRESSIONS = ["d1", "d2", "d3", "100*d4", "d1 + d2", "d1 + 0.1*d2", "d1 + d3", "d1 + 100*d4"]
FIGURE = "document.querySelector('.gm-contours')"


@pytest.fixture
def plane(page):
    """A function that opens a page with the figure."""

    def plane(**options):
        body = report.Plane(STARTS, caption="Drag gS.")._repr_html_()
        return page(body, static=["gmlib.css", "contours.css", "contours.js"], **options)

    return plane


def gS(driver):
    return driver.execute_script(f"return {FIGURE}.gm.state.gS")


def handle(driver):
    return driver.find_element("css selector", ".gm-contours [role=slider]")


def weights(expression):
    return {name: weight for weight, name in how.parse_distance(expression)}


def test_its_numbers_are_those_of_the_library(plane, complaints):
    driver = plane()
    gT = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for expression in EXPRESSIONS:
        D, given = how.distance(expression), weights(expression)
        for point in POINTS:
            A = torch.tensor([point], dtype=torch.float64, requires_grad=True)
            value = D([A], [gT])
            (slope,) = torch.autograd.grad(value, A)
            shown = driver.execute_script(
                f"return [{FIGURE}.gm.distance(...arguments), {FIGURE}.gm.slope(...arguments)]", given, point
            )
            assert shown[0] == pytest.approx(value.item(), abs=1e-12), (expression, point)
            assert shown[1] == pytest.approx(slope[0].tolist(), abs=1e-9), (expression, point)
    assert complaints() == []


def test_the_slope_of_d1_never_changes_the_length(plane):
    driver = plane()
    end = f"return {FIGURE}.gm.end(arguments[0], arguments[1])"
    x, y = driver.execute_script(end, weights("d1"), (0.25, 0.45))
    assert math.hypot(x, y) == pytest.approx(math.hypot(0.25, 0.45), rel=0.05) and abs(y) < 0.01
    for expression in ("d2", "d1 + d2", "d1 + d3"):
        assert driver.execute_script(end, weights(expression), (0.25, 0.45)) == pytest.approx([1, 0], abs=0.01)


def test_the_keyboard_moves_gS(plane):
    driver = plane()
    at = gS(driver)
    target = handle(driver)
    target.send_keys("\ue014\ue013\ue013")  # arrows: right, up, up
    assert gS(driver) == pytest.approx([at[0] + 0.04, at[1] + 0.08])
    spoken = target.get_attribute("aria-valuetext")
    value = report.plane_distances("d1", [gS(driver)], (1, 0))[0]
    assert f"d1 {value:.2f}" in spoken and f"length {math.hypot(*gS(driver)):.2f}" in spoken


def test_the_mouse_drags_gS_and_a_click_puts_it(plane):
    from selenium.webdriver import ActionChains

    driver = plane()
    at = gS(driver)
    ActionChains(driver).drag_and_drop_by_offset(handle(driver), 30, -20).perform()
    moved = gS(driver)
    side = driver.find_element("css selector", ".gm-contours canvas").size["width"]
    assert moved == pytest.approx([at[0] + 30 / side * 2.4, at[1] + 20 / side * 2.4], abs=0.02)
    right = driver.find_elements("css selector", ".gm-contours canvas")[1]
    ActionChains(driver).move_to_element(right).click().perform()
    assert gS(driver) == pytest.approx([0.3, 0.0], abs=0.02)  # the middle of the plane


def test_buttons_and_slider_choose_the_distance(plane):
    driver = plane()
    name = lambda: driver.find_elements("css selector", ".gm-plane strong")[1].text  # noqa: E731
    button = lambda text: driver.find_element("xpath", f"//button[text()='{text}']")  # noqa: E731
    assert name() == "d1 + d2" and button("d1 + d2").get_attribute("aria-pressed") == "true"
    button("d1 + 100 d4").click()
    assert name() == "d1 + 100 d4" and button("d1 + d2").get_attribute("aria-pressed") == "false"
    button("d3").click()
    assert name() == "d3"
    slider = driver.find_element("css selector", ".gm-contours input[type=range]")
    slider.send_keys("\ue012")  # left: a twentieth of a power of ten
    assert name() == "0.89 d3" and slider.get_attribute("aria-valuetext") == "0.89"


def test_following_the_slope_ends_at_once_with_reduced_motion(plane):
    driver = plane(reduced_motion=True)
    driver.find_element("css selector", ".gm-plane-play").click()
    assert driver.execute_script(f"return {FIGURE}.gm.state.along") == 1
    handle(driver).send_keys("\ue014")
    assert driver.execute_script(f"return {FIGURE}.gm.state.along") is None


@pytest.mark.parametrize(
    ("options", "is_still"), [({}, False), ({"script": False}, True), ({"media": "print"}, True)]
)
def test_without_script_and_in_print_there_is_a_still_picture(plane, options, is_still):
    driver = plane(**options)
    still, live = (driver.find_element("css selector", f"div.gm-plane-{part}") for part in ("still", "live"))
    assert (still.is_displayed(), live.is_displayed()) == (is_still, not is_still)


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(plane, dark):
    driver = plane(width=390, height=844, dark=dark)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    painted = driver.execute_script(
        "const c = document.querySelector('.gm-contours canvas'), p = c.getContext('2d');"
        "return [[0.02, 0.5], [0.98, 0.5]].map(([x, y]) => [...p.getImageData(x * c.width, y * c.height, 1, 1).data])"
    )
    assert painted[0] != painted[1], "far and near have different colours"


def test_in_jupyter_an_output_that_appears_later_is_drawn_and_keeps_its_keys(page, complaints):
    """A notebook loads sheets and scripts in its first cell. Its figures come later, and Jupyter takes keys too."""
    first = report.style.jupyter_sheet() + report.style.jupyter_script()
    driver = page(first + "<div class='later'></div>", static=[])
    driver.execute_script(
        "document.body.dataset.jpThemeLight = 'true'; window.keys = [];"
        "addEventListener('keydown', (event) => keys.push(event.key));"
        "document.querySelector('.later').innerHTML = arguments[0]",
        report.Plane(STARTS, caption="Drag gS.")._repr_html_(),
    )
    at = gS(driver)
    slider = driver.find_element("css selector", ".gm-contours input[type=range]")
    slider.send_keys("\ue014")  # arrow to the right
    handle(driver).send_keys("\ue014", "\ue009s\ue000")  # and control with s, which saves a notebook
    assert gS(driver)[0] == pytest.approx(at[0] + 0.04)
    assert float(slider.get_attribute("value")) > 0 and driver.execute_script("return keys") == ["Control", "s"]
    assert complaints() == []
