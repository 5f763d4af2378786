"""The networks that train in the page: what is stored of them, and the page without script."""

import json
import re
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gmlib as gm
import gmreport as report
from gmlib.files import read_json, write_json
from gmreport.trainer import packed

ROOT = Path(__file__).parent.parent
STORED = ROOT / "results" / "trainer"
sys.path.insert(0, str(ROOT / "workflow"))

import trainer  # noqa: E402


@pytest.fixture(scope="module")
def stored():
    return json.loads((STORED / "run.json").read_text())


def unpacked(text):
    """The inverse of `packed`, as a flat array of 0 to 16."""
    long = re.sub("[A-Y]", lambda run: "a" * (ord(run[0]) - ord("A") + 2), text)
    return np.frombuffer(long.encode(), np.uint8) - ord("a")


def embedded(page):
    """The data for the script."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])


# ---- the generator and the start of both networks


def mulberry32(seed, n):
    """The same generator as in the script, one number after another."""
    mask = 0xFFFFFFFF
    for _ in range(n):
        seed = (seed + 0x6D2B79F5) & mask
        t = ((seed ^ (seed >> 15)) * (seed | 1)) & mask
        t ^= (t + (t ^ (t >> 7)) * (t | 61)) & mask
        yield (t ^ (t >> 14)) / 2**32


@pytest.mark.parametrize("seed", [1, 7, 2**32 - 1])
def test_numbers_of_mulberry32(seed):
    assert trainer.uniform(seed, 50).tolist() == list(mulberry32(seed, 50))


def test_a_seed_decides_the_images_and_the_weights(digits):
    chosen, network = trainer.start(digits, 3)
    again = trainer.start(digits, 3)
    assert again[0] == chosen and all(map(torch.equal, again[1].parameters(), network.parameters()))
    others, other = trainer.start(digits, 4)
    assert others != chosen and not torch.equal(other[1].weight, network[1].weight)
    assert digits.train_labels[chosen].tolist() == list(range(10))
    for layer in network:
        if isinstance(layer, nn.Linear):  # as PyTorch draws them: uniform, up to 1 / sqrt(inputs)
            bound = layer.in_features**-0.5
            assert 0.99 * bound < layer.weight.abs().max() <= bound and layer.bias.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


# ---- what is stored


def test_the_set_was_made_by_the_recipe_alone(stored, digits):
    S = gm.SyntheticSet.load(STORED / "set.safetensors")
    recipe = gm.Recipe.for_method("MD", "digits", 1, network="mlp")
    assert stored["recipe"] == S.recipe == recipe.as_dict()
    assert stored["set"] == S.fingerprint and stored["data"]["fingerprint"] == digits.fingerprint


def test_the_stored_run_can_be_made_again(stored, digits):
    S = gm.SyntheticSet.load(STORED / "set.safetensors")
    chosen, _ = trainer.start(digits, 1)
    assert stored["shown"]["seed"] == stored["seeds"][0] == 1 and stored["shown"]["random_images"] == chosen
    for name, images in (("random", digits.train_images[chosen]), ("condensed", S.images)):
        found = trainer.train(trainer.start(digits, 1)[1], images, digits.labels_of(1), digits, trainer.STEPS[:-1])
        # Another machine may round another way: three of the 597 test images.
        assert found == pytest.approx(stored["shown"]["accuracies"][name], abs=0.51)
        assert stored[name][0] == stored["shown"]["accuracies"][name][-1]


def test_condensed_digits_are_better_than_random_and_chosen_ones(stored):
    """Otherwise the page shows something that is not so."""
    assert len(stored["seeds"]) == len(stored["random"]) == len(stored["condensed"]) >= 50
    better = [c > r for c, r in zip(stored["condensed"], stored["random"], strict=True)]
    assert sum(better) >= 0.95 * len(better)
    assert statistics.mean(stored["condensed"]) > statistics.mean(stored["herding"]) + 1
    assert all(statistics.mean(of_set) > statistics.mean(stored["random"]) for of_set in stored["other_sets"])


def test_measure_trains_every_kind_of_images(digits, monkeypatch):
    monkeypatch.setattr(trainer, "STEPS", (0, 2, 4))
    monkeypatch.setattr(trainer, "PROTOCOL", trainer.Protocol(epochs=4, augment="none"))
    sets = [gm.coreset("random", digits, 1, seed=seed) for seed in (0, 1)]
    found = trainer.measure(digits, sets, [5, 6])
    assert found["shown"]["seed"] == 5 and found["steps"] == [0, 2, 4]
    for name in ("random", "condensed"):
        assert len(found["shown"]["accuracies"][name]) == 3
        assert found["shown"]["accuracies"][name][-1] == found[name][0]
    assert [len(found[name]) for name in ("seeds", "random", "condensed", "herding")] == [2] * 4
    assert len(found["other_sets"]) == 1 and len(found["all_training_images"]) == 1
    assert found["all_training_images"][0] > found["random"][0]  # 4 epochs of 1,200 images


# ---- the page


def test_images_survive_packing(digits):
    text = packed(digits.test_images, digits)
    assert text.isascii() and not set(text) & set('<>&"\\')
    pixels = digits.test_images * digits.std[0] + digits.mean[0]
    assert np.array_equal(unpacked(text), (16 * pixels).round().numpy().ravel())
    with pytest.raises(ValueError, match="sixteenths"):
        packed(digits.test_images + 0.1, digits)


def test_the_page_shows_what_is_stored(stored, digits):
    page = report.train_here()._repr_html_()
    text = re.sub("<script.*?</script>|<[^>]+>", "", page, flags=re.DOTALL).replace("\xa0", " ")
    for name in ("random", "condensed", "herding"):
        assert f"{statistics.mean(stored[name]):.1f} ± {statistics.stdev(stored[name]):.1f} %" in text
    for name, curve in stored["shown"]["accuracies"].items():
        assert f"ten {name} digits {curve[-1]:.1f} %" in text
    wins = sum(c > r for c, r in zip(stored["condensed"], stored["random"], strict=True))
    assert f"The condensed digits won {wins} times" in text
    data = embedded(page)
    assert len(unpacked(data["train"])) == 64 * sum(data["counts"]) == digits.train_images.numel()
    assert [int(label) for label in data["labels"]] == digits.test_labels.tolist()
    assert data["steps"] == stored["steps"] and data["lr"] == stored["protocol"]["lr"]
    assert not re.search(r"https?:|\bsrc=.(?!data:)", page.replace("http://www.w3.org", ""))
    assert len(page) < 120_000 and page == report.train_here()._repr_html_()


@pytest.mark.parametrize("wrong", ["set", "data"])
def test_files_that_do_not_belong_together_are_refused(tmp_path, wrong):
    shutil.copytree(STORED, tmp_path / "trainer")
    path = tmp_path / "trainer" / "run.json"
    content = read_json(path)
    content[wrong] = "0" * 64 if wrong == "set" else {**content["data"], "fingerprint": "0" * 64}
    write_json(path, content)
    with pytest.raises(ValueError, match="another set or other digits"):
        report.train_here(tmp_path)
