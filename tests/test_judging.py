"""Judging a set: against random images, against all training images, and with several architectures."""

import dataclasses
import functools
import logging
import math
import time

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import make_data
from messages import refuses
from torch import nn

import gmlib as gm
from gmlib import evaluation, judging
from gmlib.evaluation import Evaluation
from gmlib.judging import CrossArchitectures, Judgement, random_images
from gmlib.runtime import OutOfTime

QUICK = {"n_networks": 3, "epochs": 3, "width": 4, "depth": 2, "device": "cpu", "progress": False}


@pytest.fixture
def trainings(monkeypatch):
    """(images, network, protocol) of each call of `evaluate` inside a comparison."""
    calls = []

    def evaluate(S, data, network, *args, **options):
        found = gm.evaluate(S, data, network, *args, **options)
        calls.append((S, found.network, found.protocol))
        return found

    monkeypatch.setattr(judging, "evaluate", evaluate)
    return calls


def uneven(data, counts):
    images = torch.cat([data.of_class(c)[:n] for c, n in enumerate(counts)])
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return gm.SyntheticSet(images, labels, data.classes, data.mean, data.std)


def linear(*_):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


# ---- judge


def test_a_judgement_consists_of_evaluations_that_can_be_made_alone():
    data = make_data(dtype=torch.float32, n_test=90)
    S = gm.coreset("herding-pixel", data, 2)
    found = gm.judge(S, data, seed=5, random_sets=2, **QUICK)
    assert found.evaluation.accuracies == gm.evaluate(S, data, seed=5, **QUICK).accuracies
    random = [gm.evaluate(gm.coreset("random", data, 2, seed), data, seed=5, **QUICK) for seed in (5, 6)]
    assert [e.accuracies for e in found.random] == [e.accuracies for e in random]
    assert found.whole.accuracies == gm.evaluate(data, data, seed=5, **QUICK).accuracies
    assert found.ior == pytest.approx(found.evaluation.mean - (random[0].mean + random[1].mean) / 2)
    assert found.hlr == pytest.approx(found.whole.mean - found.evaluation.mean)
    assert found.balanced == found.evaluation.balanced
    assert found.per_class == dict(zip(data.classes, found.evaluation.mean_per_class, strict=True))
    assert (found.counts, found.n_whole, found.n_test) == ((2, 2, 2), 36, 90)


def judgement(own, random, whole=None, classes=("a", "b", "c"), **fields):
    def of(accuracies, failed=()):
        rows = tuple((a, a / 2, math.nan) for a in accuracies)
        return Evaluation(tuple(map(float, accuracies)), "convnet", 0, {"epochs": 30}, failed=failed, per_class=rows)

    fields = {"data": "made-up", "counts": (2, 2, 2), "n_whole": 36, "n_test": 9, **fields}
    return Judgement(of(own), tuple(map(of, random)), of(whole) if whole else None, classes=classes, **fields)


def test_the_intervals_are_those_of_welch():
    """Each draw of random images counts once, however many networks were trained on it."""
    own, random, whole = [70, 72, 71, 75], [[50, 52], [60, 61], [54, 57]], [90, 91, 95]
    found = judgement(own, random, whole)
    for interval, a, b in (
        (found.ior_ci95, own, np.mean(random, 1)),
        (found.hlr_ci95, whole, own),
    ):
        expected = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        assert interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.ior == pytest.approx(np.mean(own) - np.mean(random))


def test_what_was_left_out_has_no_value_and_no_interval():
    found = judgement([70, 72], [])
    assert all(math.isnan(value) for value in (found.ior, found.hlr, *found.ior_ci95, *found.hlr_ci95))
    assert "IOR" not in str(found) and "HLR" not in str(found) and "nan" not in str(found)
    one = judgement([70, 72], [[50, 51]], [90])
    assert (one.ior, one.hlr) == (20.5, 19.0) and math.isnan(one.ior_ci95[0]) and math.isnan(one.hlr_ci95[1])
    assert "+20.5 points" in str(one) and "interval" not in str(one)


def test_draws_on_which_all_networks_diverged_do_not_count():
    found = judgement([70, 72], [[50, 52], [], [54, 56]])
    assert found.ior == 71 - 53 and not math.isnan(found.ior_ci95[0])
    none = judgement([], [[]])
    assert math.isnan(none.ior) and "none" in str(none) and "nan" not in str(none)


def test_the_networks_on_all_images_see_a_limited_number_of_them(trainings, monkeypatch):
    data = make_data(dtype=torch.float32)  # 36 training images
    S = gm.coreset("random", data, 1)
    options = {**QUICK, "n_networks": 1, "random_sets": 0, "epochs": 7}

    def epochs(**changes):
        trainings.clear()
        found = gm.judge(S, data, **{**options, **changes})
        assert [images is data for images, *_ in trainings] == [False, True]
        assert found.evaluation.protocol | {"epochs": 0} == found.whole.protocol | {"epochs": 0}
        return found.evaluation.protocol["epochs"], found.whole.protocol["epochs"]

    assert epochs() == (7, 7)
    monkeypatch.setattr(judging, "WHOLE_IMAGES", 36 * 4 + 35)
    assert epochs() == (7, 4) and epochs(epochs=2) == (2, 2)
    assert epochs(whole_epochs=9) == (7, 9)
    monkeypatch.setattr(judging, "WHOLE_IMAGES", 1)
    assert epochs() == (7, 1)


def test_the_protocol_of_the_set_is_used_everywhere(trainings):
    """A condensed set knows the width and depth of its network. Random images do not."""
    data = make_data(dtype=torch.float32)
    S = dataclasses.replace(gm.coreset("random", data, 1), recipe={"width": 6, "depth": 1})
    gm.judge(S, data, n_networks=1, epochs=2, random_sets=1, lr=0.02, device="cpu", progress=False)
    assert [(p["width"], p["depth"], p["lr"]) for *_, p in trainings] == [(6, 1, 0.02)] * 3


def test_an_evaluation_of_all_images_can_be_given(trainings):
    data = make_data(dtype=torch.float32)
    S, whole = gm.coreset("random", data, 1), Evaluation((95.0, 96.0), "convnet", 0)
    found = gm.judge(S, data, whole=whole, random_sets=0, **QUICK)
    assert found.whole == whole and len(trainings) == 1
    with refuses(ValueError, "convnet", "mlp"):
        gm.judge(S, data, "mlp", whole=whole, **QUICK)


def test_an_uneven_set_is_compared_with_as_many_random_images_of_each_class(trainings):
    data = make_data((9, 5, 12), dtype=torch.float32)
    found = gm.judge(uneven(data, (1, 5, 7)), data, random_sets=2, whole=False, **QUICK)
    assert found.counts == (1, 5, 7) and "13" in str(found)
    drawn = [S for S, *_ in trainings[1:]]
    assert [S.counts for S in drawn] == [(1, 5, 7)] * 2 and not torch.equal(drawn[0].images, drawn[1].images)
    for S in drawn:
        for c in range(3):
            images = S.images[S.labels == c]
            assert all((data.of_class(c) == image).all((1, 2, 3)).any() for image in images)
            assert len(images.unique(dim=0)) == len(images)


def test_random_images_are_the_first_of_the_coreset():
    data = make_data((9, 5, 12), dtype=torch.float32)
    even = random_images(data, (4, 4, 4), seed=3)
    assert torch.equal(even.images, gm.coreset("random", data, 4, 3).images)
    some = random_images(data, (1, 4, 2), seed=3)
    for c, n in enumerate((1, 4, 2)):
        assert torch.equal(some.images[some.labels == c], even.images[even.labels == c][:n])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"random_sets": -1}, ["random_sets=-1"]),
        ({"whole": "yes"}, ["whole='yes'", "True"]),
        ({"whole_epochs": 0}, ["whole_epochs=0"]),
        ({"network": "vit"}, ["unknown network 'vit'"]),
        ({"epoch": 3}, ["unknown protocol field 'epoch'", "epochs"]),
        ({"n_networks": 0}, ["n_networks=0"]),
        ({"S": [1]}, ["SyntheticSet", "list"]),
        ({"data": None}, ["Data", "NoneType"]),
    ],
)
def test_slips_in_a_judgement_are_refused_before_any_training(monkeypatch, change, words):
    monkeypatch.setattr(evaluation, "fit", None)
    data = make_data(dtype=torch.float32)
    with refuses(ValueError, *words):
        gm.judge(**{"S": gm.coreset("random", data, 1), "data": data, **QUICK, **change})


def test_a_set_with_more_images_than_there_are_is_refused_before_any_training(trainings):
    data = make_data((9, 5, 12), dtype=torch.float32)
    S = uneven(make_data((9, 9, 9), dtype=torch.float32), (1, 6, 1))
    S = dataclasses.replace(S, mean=data.mean, std=data.std)
    with refuses(ValueError, "6 images", "'1'", "5", "random_sets=0"):
        gm.judge(S, data, **QUICK)
    assert not trainings and gm.judge(S, data, random_sets=0, whole=False, **QUICK).evaluation.n == 3


@pytest.mark.parametrize("compare", [gm.judge, gm.cross_architectures])
def test_a_deadline_says_that_nothing_is_kept(compare):
    data = make_data(dtype=torch.float32)
    with refuses(OutOfTime, "nothing", "more time"):
        compare(gm.coreset("random", data, 1), data, deadline=time.monotonic() - 1, **QUICK)


def test_a_long_training_on_all_images_is_announced(monkeypatch, caplog):
    data = make_data(dtype=torch.float32)
    S = gm.coreset("random", data, 1)
    gm.judge(S, data, random_sets=0, **QUICK)
    assert not caplog.records
    monkeypatch.setattr(judging, "SLOW", 0)
    with caplog.at_level(logging.WARNING, "gmlib.judging"):
        gm.judge(S, data, random_sets=0, **QUICK)
    assert "whole=False" in caplog.text and "36 images" in caplog.text
    caplog.clear()
    gm.judge(S, data, random_sets=0, whole=False, **QUICK)
    assert not caplog.records


def test_a_judgement_reads_as_a_table():
    found = judgement([70, 72], [[50, 52], [54, 56]], [90, 92])
    text, lines = str(found), str(found).splitlines()
    assert repr(found) == text and all(len(line) < 100 for line in lines)
    assert (
        len({line.index(head) + len(head) for line, head in zip(lines[1:5], ("images", "6", "6", "36"), strict=True)})
        == 1
    )
    assert "71.0 ± 1.4" in text and "+18.0 points" in text and "+20.0 points" in text and "2 draws" in text
    assert "b 35.5 %, a 71.0 %" in text and "c " not in lines[-1], "a class without test images is not weak"


def test_names_cannot_harm_a_page_or_a_terminal():
    bad = "<script>alert(1)</script>"
    page = judgement([70, 72], [[50]], classes=(bad, "b", "c"), data=bad)._repr_html_()
    page += CrossArchitectures({bad: Evaluation((1.0,), bad, 0)}, {bad: bad})._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page
    found = str(judgement([70, 72], [[50]], classes=("\x1b[2J", "b\nc", "x" * 999), data="\x07"))
    assert "\x1b" not in found and "\x07" not in found and len(found.splitlines()) == 6 and "x" * 99 not in found


# ---- several architectures


def test_each_architecture_has_the_evaluation_that_it_has_alone():
    data = make_data(dtype=torch.float32, n_test=90)
    S, small = gm.coreset("random", data, 2), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    networks = [
        "mlp",
        small,
        "convnet:norm=none",
        linear,
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3)),
    ]
    found = gm.cross_architectures(S, data, networks, **QUICK)
    assert list(found) == ["mlp", "Sequential", "convnet:norm=none", "linear", "Sequential 2"]
    for network, e in zip(networks, found.values(), strict=True):
        assert e.per_class == gm.evaluate(S, data, network, **QUICK).per_class
    assert found["Sequential"].accuracies == found["linear"].accuracies != found["Sequential 2"].accuracies
    named = gm.cross_architectures(S, data, {"one layer": small, "two": "mlp"}, **QUICK)
    assert {name: e.accuracies for name, e in named.items()} == {
        "one layer": found["Sequential"].accuracies,
        "two": found["mlp"].accuracies,
    }
    (alone,) = gm.cross_architectures(S, data, small, **QUICK)
    assert alone == "Sequential"


def test_without_names_the_networks_of_table_4_that_fit_are_taken(monkeypatch):
    def evaluate(S, data, architecture, *_, **options):
        return Evaluation((50.0, 60.0), architecture.name, 0, {"epochs": 3})

    monkeypatch.setattr(judging, "evaluate", evaluate)
    small, grey = (make_data((2, 2), (1, side, side), dtype=torch.float32) for side in (8, 28))
    found = gm.cross_architectures(gm.coreset("random", small, 1), small, **QUICK)
    assert list(found) == ["mlp", "convnet", "alexnet"] and list(found.left_out) == ["lenet", "vgg11", "resnet18"]
    assert all(f"left out: {name}" in str(found) and name in found._repr_html_() for name in found.left_out)
    found = gm.cross_architectures(gm.coreset("random", grey, 1), grey, **QUICK)
    assert tuple(found) == judging.TABLE_4 and not found.left_out
    with refuses(ValueError, "LeNet", "16x16"):
        gm.cross_architectures(gm.coreset("random", small, 1), small, ["mlp", "lenet"], **QUICK)


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        (["mlp", "mpl"], ["unknown network 'mpl'", "'mlp'"]),
        (["mlp", "mlp"], ["'mlp' is given twice", "dict"]),
        (["mlp", nn.Flatten()], ["'Flatten'", "(2, 3)"]),
        ([], ["no networks"]),
        (5, ["networks=5", "list"]),
        ({1: "mlp"}, ["1 is no name"]),
    ],
)
def test_all_architectures_are_checked_before_the_first_is_trained(monkeypatch, networks, words):
    monkeypatch.setattr(evaluation, "fit", None)
    data = make_data(dtype=torch.float32)
    with refuses(ValueError, *words):
        gm.cross_architectures(gm.coreset("random", data, 1), data, networks, **QUICK)


def test_slips_are_not_taken_for_networks_that_do_not_fit():
    data = make_data(dtype=torch.float32)
    S = gm.coreset("random", data, 1)
    for bad in ({"S": [1]}, {"data": None}, {"epoch": 3}, {"lr": -1}):
        with refuses(ValueError):
            gm.cross_architectures(**{"S": S, "data": data, **QUICK, **bad})


def test_the_table_of_architectures_as_a_frame():
    first = Evaluation((70.0, 72.0), "mlp", 0, {"epochs": 30}, 1.5, (2,), ((70.0, 50.0), (72.0, 50.0)))
    found = CrossArchitectures({"mlp": first, "mine": Evaluation((1.0,), "Net", 0)})
    frame = found.to_dataframe()
    assert list(frame.index) == ["mlp", "mine"] and frame.index.name == "network"
    row = frame.loc["mlp"]
    assert (row.accuracy, row["std"], row.networks, row.diverged, row.epochs, row.seconds) == (
        71.0, first.std, 2, 1, 30, 1.5,
    )  # fmt: skip
    assert (row.low, row.high) == first.ci95 and row.balanced == 60.5
    assert math.isnan(frame.loc["mine"].balanced) and math.isnan(frame.loc["mine"].low)
    assert "71.0 ± 1.4" in str(found) and "2 of 3" in str(found) and "nan" not in str(found)
    assert len(CrossArchitectures().to_dataframe()) == 0


def test_intervals_are_left_out_without_scipy(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **options):
        if "statistics" in name:
            raise ModuleNotFoundError("scipy is needed for this", name="scipy")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    text = str(judgement([70, 72], [[50, 52], [54, 56]], [90, 92]))
    assert "+18.0 points" in text and "scipy" in text and "interval +" not in text


def test_a_partial_and_a_registered_factory_can_be_mixed():
    data = make_data(dtype=torch.float32)
    own = functools.partial(gm.NETWORKS["convnet"], width=3, depth=1)
    found = gm.cross_architectures(gm.coreset("random", data, 1), data, [own, gm.NETWORKS["mlp"]], **QUICK)
    assert list(found) == ["gmlib.networks.convnet", "mlp"]
