"""The film on the first page in a real browser: slider, scrolling, and its still face."""

import pytest
from test_front import made_up_claims, tiny_film

from gmreport import front

STATIC = ("gmlib.css", "explorer.css", "front.css", "front.js")


@pytest.fixture
def film_page(page):
    """Open a page with the film, with room to scroll."""

    def film_page(**options):
        shown = front.hero(tiny_film()).data
        return page(f'<main>{shown}<div style="height:2000px"></div></main>', static=STATIC, **options)

    return film_page


def visible(driver):
    """The captions of the states that can be seen."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.gm-hero-state')]"
        ".filter(x => x.checkVisibility({visibilityProperty: true}))"
        ".map(x => x.querySelector('p span').textContent)"
    )


def until(driver, captions):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 5).until(lambda d: visible(d) == captions, f"{visible(driver)} is not {captions}")


def scroll_to(driver, y):
    driver.execute_script("window.scrollTo({top: arguments[0], behavior: 'instant'})", y)


START, MIDDLE, END = "Ten blobs of noise, the start", "After 5 outer iterations", "Ten learned images"


def test_the_first_frame_is_the_end_and_the_slider_moves_it(film_page, complaints):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    driver = film_page()
    until(driver, [END])
    slider = driver.find_element(By.CSS_SELECTOR, ".gm-hero input")
    slider.send_keys(Keys.HOME)
    until(driver, [START])
    assert slider.get_attribute("aria-valuetext") == f"{START}: 9.5 %"
    slider.send_keys(Keys.ARROW_RIGHT)
    until(driver, [MIDDLE])
    scroll_to(driver, 600)
    until(driver, [MIDDLE])  # a reader who took the slider keeps it
    driver.find_elements(By.CSS_SELECTOR, ".gm-hero-stop")[0].click()
    until(driver, [START])
    assert complaints() == []


def test_scrolling_plays_the_film_from_noise_to_its_end(film_page):
    driver = film_page()
    scroll_to(driver, 5)
    until(driver, [START])
    scroll_to(driver, 600)
    until(driver, [END])
    scroll_to(driver, 0)
    until(driver, [END])


def test_with_reduced_motion_scrolling_moves_nothing(film_page):
    driver = film_page(reduced_motion=True)
    scroll_to(driver, 5)
    until(driver, [END])


@pytest.mark.parametrize("options", [{"script": False}, {"media": "print"}], ids=["no script", "print"])
def test_the_still_face_shows_the_start_the_way_and_the_end(film_page, options):
    driver = film_page(**options)
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    until(driver, [START, MIDDLE, END])
    hidden = "return !document.querySelector('.gm-hero input').checkVisibility()"
    assert driver.execute_script(hidden), "a slider that cannot be used"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    answer = front.Answer(
        "Does it work?", "held", "A sentence. " * 20, "MNIST.", "notebooks/what", "What", 1, 0.5, 1.5
    )
    parts = [front.hero(tiny_film()), front.answers_html([answer]), front.ours_against_paper(made_up_claims())]
    driver = page(f"<main>{''.join(part.data for part in parts)}</main>", static=STATIC, width=width)
    assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
