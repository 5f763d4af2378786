"""Recordings in a real browser: play, slider, choice, and the page without script."""

import io

import numpy as np
import pytest
from PIL import Image
from test_playground import session

import gmreport as report
from gmreport.replays import Recordings

STATIC = ["gmlib.css", "session.css", "session.js"]


@pytest.fixture
def recordings(page):
    """A function that opens a page with two recordings, and its sessions."""

    def recordings(**options):
        made = {"first": session(), "second": session(shade=1.0)}
        shown = Recordings(
            [
                report.Recording(made, title="Two runs", question="Which?", answer="Both.", id="try-two"),
                report.Recording({"alone": session(ts=(0, 3))}, title="One run", id="try-one"),
            ]
        )
        return page(shown._repr_html_(), static=STATIC, **options), made

    return recordings


def visible(driver):
    boxes = driver.find_elements("css selector", ".gm-session")
    return [box.get_attribute("id") for box in boxes if box.is_displayed()]


def outputs(driver):
    return [each.text for each in driver.find_elements("css selector", "#try-two .gm-along output")]


def wait(driver, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 20, poll_frequency=0.05).until(lambda _: condition())


def test_it_starts_with_the_end_of_the_first_recording(recordings, complaints):
    driver, _ = recordings()
    assert visible(driver) == ["try-two"]
    assert outputs(driver)[0] == "81 %" and outputs(driver)[4] == "82 %"
    assert driver.find_element("css selector", "#try-two .gm-session-bar output").text == "k = 4"
    assert complaints() == []


def test_the_slider_shows_the_images_and_values_of_its_frame(recordings):
    driver, made = recordings()
    slider = driver.find_element("css selector", "#try-two input")
    slider.send_keys("\ue012")  # left
    assert slider.get_attribute("aria-valuetext") == "k = 1 of 4"
    assert outputs(driver)[:4] == ["51 %", "0.30 0.30", "1.22 1.22", "9"]
    shown = driver.execute_script(
        "const c = document.querySelector('#try-two canvas');"
        "return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    )
    sprite = np.asarray(Image.open(io.BytesIO(made["first"].sprite)).convert("RGBA"))
    height = len(sprite) // 3
    frame = np.array(shown[2]).reshape(shown[1], shown[0], 4)
    np.testing.assert_array_equal(frame, sprite[height : 2 * height])
    now = driver.find_element("css selector", "#try-two .gm-session-now")
    assert float(now.get_attribute("x1")) == 25


def test_play_runs_to_the_end_and_pause_stops_it(recordings):
    driver, _ = recordings()
    button, slider = (driver.find_element("css selector", f"#try-two {what}") for what in ("button", "input"))
    button.click()
    assert button.text == "⏸ Pause"
    button.click()
    at = slider.get_attribute("value")
    assert button.text == "▶ Play" and at != "2"
    button.click()
    wait(driver, lambda: slider.get_attribute("value") == "2" and button.text == "▶ Play")
    assert outputs(driver)[0] == "81 %"


def test_the_links_choose_a_recording(recordings):
    driver, _ = recordings()
    links = driver.find_elements("css selector", ".gm-sessions nav a")
    links[1].send_keys("\ue007")  # enter
    assert visible(driver) == ["try-one"] and links[1].get_attribute("aria-current") == "true"
    assert driver.current_url.endswith("#try-one") and links[0].get_attribute("aria-current") is None
    driver.execute_script("location.hash = '#try-two'")
    wait(driver, lambda: visible(driver) == ["try-two"])


@pytest.mark.parametrize("options", [{"script": False}, {"media": "print"}])
def test_without_script_and_in_print_all_recordings_have_their_stills(recordings, options):
    driver, _ = recordings(**options)
    assert visible(driver) == ["try-two", "try-one"]
    assert all(each.is_displayed() for each in driver.find_elements("css selector", ".gm-stills img"))
    assert not any(each.is_displayed() for each in driver.find_elements("css selector", ".gm-session-bar, canvas"))


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(recordings, dark):
    driver, _ = recordings(width=390, height=844, dark=dark)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    sizes = driver.execute_script(
        "return [...document.querySelectorAll('.gm-session *')].filter(e => !e.children.length && e.innerText"
        " && e.getClientRects().length).map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert sizes and min(sizes) >= 12


def test_names_are_shown_as_text(page):
    made = report.Recording({"</script><b id=hit>": session()}, title="<i id=hit>", answer="</script>")
    driver = page(made._repr_html_(), static=STATIC)
    assert not driver.find_elements("css selector", "#hit")
    assert driver.find_element("css selector", ".gm-session.gm-ready h3").text == "<i id=hit>"
