"""Recipes: presets, overrides, and what they refuse."""

import json

import numpy as np
import pytest
import torch

from gmlib import BUDGETS, METHODS, Recipe
from gmlib.recipe import milestones
from gmlib.runtime import generator


def test_the_defaults_are_the_papers():
    r = Recipe()
    assert (r.outer_loops, r.batch_real, r.batch_theta, r.width, r.depth) == (1000, 256, 256, 128, 3)
    assert (r.lr_images, r.momentum_images, r.lr_network, r.momentum_network) == (0.1, 0.5, 0.01, 0.5)
    assert r.init == "noise" and r.lam is None
    assert BUDGETS["paper"].diff(1) == BUDGETS["paper"].diff(50) == {}
    assert (BUDGETS["paper"].sets, BUDGETS["paper"].networks) == (2, 50)


@pytest.mark.parametrize(
    ("method", "what", "how", "where"),
    [
        ("DC", "intra", "d1", "fixed"),
        ("M", "multi", "d1", "fixed"),
        ("MD", "multi", "d1 + d2", "fixed"),
        ("MDO", "multi", "d1 + d2", "overfit"),
        ("MDA", "multi", "d1 + d2", "adaptive"),
    ],
)
def test_methods(method, what, how, where):
    r = Recipe.for_method(method, ipc=10)
    assert (r.what, r.how, r.where, r.method) == (what, how, where, method)


@pytest.mark.parametrize(("ipc", "loops"), [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (50, (50, 10))])
def test_schedule_by_images_per_class(ipc, loops):
    assert Recipe(ipc=ipc, where="fixed").schedule() == loops
    assert Recipe(ipc=ipc, where="fixed", inner_loops=3, zeta_theta=7).schedule() == (3, 7)


def test_the_mlp_as_source_network_has_its_own_rate():
    assert Recipe.for_method("MD", network="mlp").lr_images == 0.01
    assert Recipe.for_method("MD", network="mlp", lr_images=0.3).lr_images == 0.3
    assert Recipe.for_method("MD", network="lenet").lr_images == 0.1


def test_budget_is_a_diff_and_overrides_win():
    smoke = Recipe.for_method("M", ipc=10, budget="smoke")
    assert smoke.outer_loops == BUDGETS["smoke"].many["outer_loops"]
    assert Recipe.for_method("M", ipc=1, budget="smoke").outer_loops == BUDGETS["smoke"].recipe["outer_loops"]
    assert Recipe.for_method("M", ipc=10, budget="smoke", outer_loops=3, seed=4).outer_loops == 3


def test_a_recipe_survives_json_and_names_itself():
    r = Recipe.for_method("MD", ipc=50, how="d1 + 0.1*d2", seed=3)
    assert Recipe(**json.loads(json.dumps(r.as_dict()))) == r
    assert r.method == "multi,d1+0.1*d2,fixed"
    assert Recipe.for_method("DC", what="inter").method == "Inter"
    assert Recipe(how="d1+1.0*d2", ipc=10).method == "MDA", "one spelling for one distance"


def test_footnote_5():
    """CIFAR-10 with 50 images per class is the paper's exception: d1 + 0.1 d2."""
    r = Recipe.for_method("MDA", "CIFAR10", 50)
    assert (r.how, r.method) == ("d1 + 0.1*d2", "MDA")
    assert Recipe.for_method("M", "CIFAR10", 50).how == "d1"
    assert Recipe.for_method("MDA", "CIFAR10", 10).how == Recipe.for_method("MDA", "SVHN", 50).how == "d1 + d2"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"what": "both"}, "unknown what 'both': choose from intra, inter, interleaved, multi"),
        ({"where": "never"}, "unknown where 'never': choose from fixed, adaptive, overfit, overfit-gap, or spell"),
        ({"how": "d9"}, "unknown distance 'd9'.*choose from d1, d2, d3, d4"),
        ({"network": "resnet9000"}, "unknown network 'resnet9000': choose from .*convnet"),
        ({"what": ["intra"]}, "unknown what .*choose from intra"),
        ({"class_weights": "some"}, "unknown class_weights 'some': choose from equal, share"),
        ({"inter_batches": "all"}, "unknown inter_batches 'all': choose from classes, sampled"),
        ({"zeta_S": 0}, "zeta_S=0 does not fit"),
        ({"where": "steps:"}, "unknown where 'steps:'"),
        ({"init": "zeros"}, "unknown init 'zeros': choose from noise, real"),
        ({"augment": "mixup"}, "unknown augment 'mixup'"),
        ({"precision": "float16"}, "unknown precision 'float16': choose from float32, tf32, bf16, tf32.bf16"),
        ({"ipc": 0}, "ipc=0 does not fit: give a whole number of at least 1"),
        ({"ipc": 1.0}, "ipc=1.0 does not fit"),
        ({"ipc": True}, "ipc=True does not fit"),
        (
            {"ipc": 7},
            "no schedule for ipc=7 .only for 1, 10, 20, 30, 40, 50.: take one of these, or give inner_loops",
        ),
        ({"ipc": 7, "where": "fixed"}, "give inner_loops and zeta_theta"),
        ({"ipc": 7, "where": "fixed", "inner_loops": 7}, "give zeta_theta"),
        ({"inner_loops": 0}, "inner_loops=0 does not fit"),
        ({"lr_images": -0.1}, "lr_images=-0.1 does not fit: give a positive number"),
        ({"lr_network": 0}, "lr_network=0 does not fit"),
        ({"lr_images": float("nan")}, "lr_images=nan does not fit"),
        ({"lr_images": "fast"}, "lr_images='fast' does not fit"),
        ({"momentum_images": 1}, "momentum_images=1 does not fit"),
        ({"lam": -1}, "lam=-1 does not fit"),
        ({"gap": -1}, "gap=-1 does not fit"),
        ({"seed": -1}, "seed=-1 does not fit"),
        ({"outer_loops": 0}, "outer_loops=0 does not fit"),
        ({"width": 0}, "width=0 does not fit"),
        ({"batch_real": 0}, "batch_real=0 does not fit"),
    ],
)
def test_bad_values_are_told_in_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        Recipe(**change)
    assert "\n" not in str(error.value)


def test_a_schedule_and_a_strategy_have_one_spelling():
    assert Recipe(augment="dsa: crop + scale") == Recipe(augment="dsa:crop+scale")
    assert Recipe(where="steps: 5, 04") == Recipe(where="steps:5,4")


def test_numbers_of_numpy_are_stored_as_pythons():
    recipe = Recipe(
        ipc=np.int64(10), lr_images=np.float32(0.5), lam=np.float64(2), seed=np.int32(3), batch_real=np.uint8(7)
    )
    assert recipe == Recipe(ipc=10, lr_images=0.5, lam=2.0, seed=3, batch_real=7)
    assert json.loads(json.dumps(recipe.as_dict())) == recipe.as_dict()
    assert {type(value) for value in recipe.as_dict().values()} <= {int, float, str, type(None)}
    assert Recipe.for_method("MDA", ipc=np.int64(10), budget="smoke") == Recipe.for_method(
        "MDA", ipc=10, budget="smoke"
    )


def test_unknown_names_in_for_method():
    with pytest.raises(ValueError, match=f"unknown method 'XX': choose from {', '.join(METHODS)}"):
        Recipe.for_method("XX")
    with pytest.raises(ValueError, match="unknown budget 'huge': choose from smoke, lite, paper"):
        Recipe.for_method("M", budget="huge")
    with pytest.raises(ValueError, match=r"unknown recipe field 'learning_rate': choose from .*lr_images"):
        Recipe.for_method("M", learning_rate=1)


def test_streams_are_repeatable_and_apart():
    def first(*path):
        return torch.rand(3, generator=generator(*path)).tolist()

    assert first(0, "network", 1) == first(0, "network", 1)
    others = [first(0, "network", 2), first(1, "network", 1), first(0, "batches", 1), first(0, "network1")]
    assert first(0, "network", 1) not in others
    assert len({tuple(o) for o in others}) == 4


def test_milestones():
    assert milestones(60) == [0, 1, 2, 5, 10, 20, 40, 60]
    assert milestones(1) == [0, 1]
