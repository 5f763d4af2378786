"""The networks that train in the page, in headless Chromium, against gmlib's own training of the same networks."""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gmlib as gm
import gmreport as report

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

import trainer  # noqa: E402

STATIC = ["gmlib.css", "trainer.css", "trainer.js"]
TEST_IMAGES = 597
# A 3 by keyboard: the pen starts in row 1, column 3.
THREE = "UP LEFT SPACE RIGHT RIGHT RIGHT DOWN DOWN DOWN LEFT LEFT SPACE "
THREE += "RIGHT RIGHT SPACE DOWN DOWN DOWN LEFT LEFT LEFT SPACE"


@pytest.fixture
def open_trainer(page):
    return lambda **options: page(report.train_here()._repr_html_(), static=STATIC, **options)


def one(driver, selector):
    return driver.find_element("css selector", f".gm-trainer {selector}")


def train(driver, selector=".gm-train", key=None):
    """Press a button and wait for the end. Returns the seed, the accuracies and the weights."""
    button = one(driver, selector)
    button.send_keys(key) if key else button.click()
    ends = time.monotonic() + 120
    while one(driver, "").get_attribute("data-state") != "ready":
        assert time.monotonic() < ends, "the training did not end"
        time.sleep(0.1)
    return driver.execute_script(
        "const t = document.querySelector('.gm-trainer').gmTrained, all = {};"
        "for (const net in t.networks) all[net] = t.networks[net].map(l => [Array.from(l.W), Array.from(l.b)]);"
        "return [t.seed, t.accuracies, all];"
    )


def by_gmlib(seed, digits):
    """The accuracies and the weights of the same networks, trained by gmlib."""
    S = gm.SyntheticSet.load(ROOT / "results" / "trainer" / "set.safetensors")
    chosen, _ = trainer.start(digits, seed)
    accuracies, weights = {}, {}
    for net, images in (("random", digits.train_images[chosen]), ("condensed", S.images)):
        network = trainer.start(digits, seed)[1]
        accuracies[net] = trainer.train(network, images, digits.labels_of(1), digits, trainer.STEPS[:-1])
        weights[net] = np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])
    return accuracies, weights


def flat(layers):
    return np.concatenate([np.array(part) for layer in layers for part in layer])


def flat_start(seed, digits):
    return np.concatenate([p.detach().numpy().ravel() for p in trainer.start(digits, seed)[1].parameters()])


def shown(driver, net):
    return float(re.match(r"([\d.]+)\s%", one(driver, f".gm-sets .gm-{net} b").text)[1])


def test_the_browser_trains_the_networks_that_gmlib_trains(open_trainer, complaints, digits):
    driver = open_trainer()
    stored = {net: shown(driver, net) for net in ("random", "condensed")}
    runs = [train(driver) for _ in range(2)]
    for expected_seed, (seed, accuracies, layers) in enumerate(runs, 1):
        assert seed == expected_seed
        ours, weights = by_gmlib(seed, digits)
        for net in ("random", "condensed"):
            assert accuracies[net] == pytest.approx(ours[net], abs=3.1 * 100 / TEST_IMAGES)
            start = flat_start(seed, digits)
            moved = np.abs(weights[net] - start).max()
            assert np.abs(flat(layers[net]) - weights[net]).max() < 1e-3 * moved
    assert shown(driver, "random") == pytest.approx(runs[1][1]["random"][-1], abs=0.051)
    first = {net: curve[-1] for net, curve in runs[0][1].items()}
    assert stored == pytest.approx(first, abs=3.2 * 100 / TEST_IMAGES)  # the page showed the same run before
    assert runs[0][1]["random"] != runs[1][1]["random"]
    assert "2 seeds" in one(driver, ".gm-attempts").text

    seed = one(driver, "input")
    seed.clear()
    seed.send_keys("1")
    assert train(driver) == runs[0]  # the same seed, the same figures to the last bit
    assert "2 seeds" in one(driver, ".gm-attempts").text  # it counts once
    assert complaints() == []


def press(driver, keys):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    names = {"UP": "ARROW_UP", "DOWN": "ARROW_DOWN", "LEFT": "ARROW_LEFT", "RIGHT": "ARROW_RIGHT"}
    actions = ActionChains(driver)
    for key in keys.split():
        actions.send_keys(getattr(Keys, names.get(key, key)))
    actions.perform()


def reads(driver):
    """What both networks read, as text."""
    return [one(driver, f".gm-bars .gm-{net} b").text for net in ("random", "condensed")]


def test_everything_works_by_keyboard(open_trainer, complaints):
    from selenium.webdriver.common.keys import Keys

    driver = open_trainer()
    press(driver, "TAB")
    assert driver.switch_to.active_element == one(driver, ".gm-train")
    assert "ten condensed digits" in one(driver, ".gm-result").text and reads(driver) == ["–", "–"]
    train(driver, key=Keys.ENTER)
    assert driver.switch_to.active_element == one(driver, ".gm-train")  # the focus stays
    assert "in your browser, seed 1" in one(driver, ".gm-result").text
    press(driver, "TAB TAB TAB")
    assert driver.switch_to.active_element == one(driver, ".gm-pad")
    press(driver, "RIGHT")
    assert one(driver, ".gm-train-said").text == "Pen up, row 2, column 5 of 8."
    press(driver, "LEFT " + THREE)
    spoken = one(driver, ".gm-train-said .gm-hidden").get_attribute("textContent")
    assert re.fullmatch(r" Ten condensed digits read 3 \(\d+\s%\)\. Ten random digits read \d \(\d+\s%\)\.", spoken)
    assert reads(driver)[1].startswith("3 (")
    press(driver, "BACKSPACE")
    assert not reads(driver)[1].startswith("–")  # one stroke is left
    press(driver, "DELETE")
    assert reads(driver) == ["–", "–"]
    press(driver, "TAB")
    assert driver.switch_to.active_element == one(driver, ".gm-clear")
    assert complaints() == []


def test_drawing_with_the_mouse_and_test_digits(open_trainer, complaints):
    from selenium.webdriver.common.action_chains import ActionChains

    driver = open_trainer()
    one(driver, ".gm-any").click()
    assert "Train both networks" in one(driver, ".gm-train-said").text
    train(driver)
    pad = one(driver, ".gm-pad")
    actions = ActionChains(driver).move_to_element_with_offset(pad, 0, -80).click_and_hold()
    actions.move_to_element_with_offset(pad, 0, 0).move_to_element_with_offset(pad, 0, 80).release().perform()
    drawn = reads(driver)
    assert "–" not in drawn
    ink = driver.execute_script(
        "const c = document.querySelector('.gm-seen');"
        "return Array.from(c.getContext('2d').getImageData(0, 0, 8, 8).data).filter((_, i) => i % 4 === 0);"
    )
    columns = np.array(ink).reshape(8, 8).sum(0)
    assert (columns[[3, 4]] > 1000).all() and columns[[0, 1, 2, 5, 6, 7]].sum() == 0  # upright and in the middle
    one(driver, ".gm-differ").click()
    random, condensed = (text[0] for text in reads(driver))
    assert random != condensed and one(driver, ".gm-train-said").text.startswith("A test digit: it is a ")
    one(driver, ".gm-clear").click()
    assert reads(driver) == ["–", "–"]
    assert complaints() == []


def changes_of_the_curve(driver):
    """Train while counting how often the curve is drawn."""
    driver.execute_script(
        "window.drawn = 0; new MutationObserver(all => window.drawn += all.length).observe("
        "document.querySelector('.gm-chart .gm-condensed .gm-train-line'), {attributeFilter: ['d']});"
    )
    train(driver)
    return driver.execute_script("return window.drawn")


def test_five_seeds_at_once_without_motion(open_trainer):
    driver = open_trainer(reduced_motion=True)
    assert changes_of_the_curve(driver) == 1
    seed, *_ = train(driver, ".gm-train-more")
    assert seed == 6 and "6 seeds" in one(driver, ".gm-attempts").text
    assert len(driver.find_elements("css selector", ".gm-strip-chart .gm-condensed .gm-dots circle")) == 6
    assert one(driver, "input").get_attribute("value") == "7"


def test_the_curve_climbs_while_they_train(open_trainer):
    stored = json.loads((ROOT / "results" / "trainer" / "run.json").read_text())
    assert changes_of_the_curve(open_trainer()) == len(stored["steps"])


@pytest.mark.parametrize("script", [True, False])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_every_screen(open_trainer, width, script):
    driver = open_trainer(width=width, script=script, dark=not script)
    hidden = [not one(driver, part).is_displayed() for part in (".gm-train", ".gm-pad")]
    assert hidden == [not script] * 2
    assert one(driver, ".gm-chart .gm-condensed .gm-train-line").is_displayed()
    if script:  # without it nothing can be measured
        wide, small = driver.execute_script(
            "const texts = [...document.querySelectorAll('.gm-trainer text')].map(t => t.getScreenCTM().a *"
            "parseFloat(getComputedStyle(t).fontSize));"
            "return [document.documentElement.scrollWidth, Math.min(...texts)];"
        )
        assert wide <= width and small >= 12
