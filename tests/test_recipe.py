"""Recipes: presets, overrides, spelling, and errors."""

import json

import numpy as np
import pytest
import torch
from messages import refuses

from gmlib import BUDGETS, METHODS, Recipe
from gmlib.checks import choose
from gmlib.recipe import milestones
from gmlib.runtime import generator


def test_the_defaults_are_those_of_the_paper():
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


@pytest.mark.parametrize(
    ("ipc", "loops"),
    [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (50, (50, 10)), (2, (2, 50)), (15, (15, 38)), (200, (50, 10))],
)
def test_schedule_follows_from_images_per_class(ipc, loops):
    assert Recipe(ipc=ipc, where="fixed").schedule() == loops
    assert Recipe(ipc=ipc, where="fixed", inner_loops=3, zeta_theta=7).schedule() == (3, 7)


def test_a_schedule_says_where_it_comes_from():
    sources = [Recipe(ipc=ipc, **given).describe_schedule() for ipc, given in (
        (10, {}), (15, {}), (15, {"inner_loops": 2}), (15, {"inner_loops": 2, "zeta_theta": 3})
    )]  # fmt: skip
    assert [s.pop("source") for s in sources] == [
        "Section 4.4", "between points of Section 4.4", "recipe and between points of Section 4.4", "recipe",
    ]  # fmt: skip
    assert sources[2:] == [{"T": 2, "zeta_theta": 38}, {"T": 2, "zeta_theta": 3}]


def test_numbers_of_numpy_become_plain_ones():
    r = Recipe(ipc=np.int64(3), outer_loops=np.uint8(7), lr_images=np.float32(0.5), lam=np.float64(2))
    assert r == Recipe(ipc=3, outer_loops=7, lr_images=0.5, lam=2.0)
    assert json.loads(json.dumps(r.as_dict())) == r.as_dict()


def test_the_mlp_has_its_own_learning_rate():
    assert Recipe.for_method("MD", network="mlp").lr_images == 0.01
    assert Recipe.for_method("MD", network="mlp", lr_images=0.3).lr_images == 0.3
    assert Recipe.for_method("MD", network="lenet").lr_images == 0.1


def test_a_budget_changes_fields_and_overrides_come_last():
    smoke = Recipe.for_method("M", ipc=10, budget="smoke")
    assert smoke.outer_loops == BUDGETS["smoke"].many["outer_loops"]
    assert Recipe.for_method("M", ipc=1, budget="smoke").outer_loops == BUDGETS["smoke"].recipe["outer_loops"]
    assert Recipe.for_method("M", ipc=10, budget="smoke", outer_loops=3, seed=4).outer_loops == 3


def test_a_recipe_survives_json_and_knows_its_method():
    r = Recipe.for_method("MD", ipc=50, how="d1 + 0.1*d2", seed=3)
    assert Recipe(**json.loads(json.dumps(r.as_dict()))) == r
    assert r.method == "multi,d1+0.1*d2,fixed"
    assert Recipe.for_method("DC", what="inter").method == "Inter"
    assert Recipe(how="d1+1.0*d2", ipc=10).method == "MDA", "the spelling of a distance does not matter"


def test_footnote_5():
    """The paper takes d1 + 0.1 d2 for CIFAR-10 with 50 images per class."""
    r = Recipe.for_method("MDA", "CIFAR10", 50)
    assert (r.how, r.method) == ("d1 + 0.1*d2", "MDA")
    assert Recipe.for_method("M", "CIFAR10", 50).how == "d1"
    assert Recipe.for_method("MDA", "CIFAR10", 10).how == Recipe.for_method("MDA", "SVHN", 50).how == "d1 + d2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"what": "both"}, "what 'both'.*intra, inter, interleaved, multi"),
        ({"what": ["intra"]}, "what .*intra, inter"),
        ({"where": "never"}, "where 'never'.*fixed, adaptive, overfit, overfit-gap, or a schedule"),
        ({"where": "steps:"}, "where 'steps:'"),
        ({"how": "d9"}, "distance 'd9'.*d1, d2, d3, d4"),
        ({"network": "resnet9000"}, "network 'resnet9000'.*convnet"),
        ({"class_weights": "some"}, "class_weights 'some'.*equal, share"),
        ({"inter_batches": "all"}, "inter_batches 'all'.*classes, sampled"),
        ({"inter_batches": "sampled", "augment": "dsa"}, "augment"),
        ({"init": "zeros"}, "init 'zeros'.*noise, real"),
        ({"augment": "mixup"}, "augment 'mixup'"),
        ({"precision": "float16"}, "precision 'float16'.*float32, tf32, bf16, tf32.bf16"),
        ({"ipc": 0}, "ipc=0.*at least 1"),
        ({"ipc": 1.0}, "ipc=1.0"),
        ({"ipc": True}, "ipc=True"),
        ({"inner_loops": 0}, "inner_loops=0"),
        ({"outer_loops": 0}, "outer_loops=0"),
        ({"zeta_S": 0}, "zeta_S=0"),
        ({"width": 0}, "width=0"),
        ({"batch_real": 0}, "batch_real=0"),
        ({"lr_images": -0.1}, "lr_images=-0.1.*positive"),
        ({"lr_images": float("nan")}, "lr_images=nan"),
        ({"lr_images": "fast"}, "lr_images='fast'"),
        ({"lr_network": 0}, "lr_network=0"),
        ({"momentum_images": 1}, "momentum_images=1"),
        ({"lam": -1}, "lam=-1"),
        ({"gap": -1}, "gap=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_values_raise_one_sentence(change, message):
    with pytest.raises(ValueError, match=message) as error:
        Recipe(**change)
    assert "\n" not in str(error.value)


def test_a_network_itself_is_not_its_name():
    with refuses(ValueError, "network=Linear", "gm.register_network('mine', factory)"):
        Recipe(network=torch.nn.Linear(2, 2))


def test_schedules_and_strategies_have_one_spelling():
    assert Recipe(augment="dsa: crop + scale") == Recipe(augment="dsa:crop+scale")
    assert Recipe(where="steps: 5, 04") == Recipe(where="steps:5,4")


def test_numpy_numbers_become_python_numbers():
    recipe = Recipe(
        ipc=np.int64(10), lr_images=np.float32(0.5), lam=np.float64(2), seed=np.int32(3), batch_real=np.uint8(7)
    )
    assert recipe == Recipe(ipc=10, lr_images=0.5, lam=2.0, seed=3, batch_real=7)
    assert json.loads(json.dumps(recipe.as_dict())) == recipe.as_dict()
    assert {type(value) for value in recipe.as_dict().values()} <= {int, float, str, type(None)}
    of_numpy = Recipe.for_method("MDA", ipc=np.int64(10), budget="smoke")
    assert of_numpy == Recipe.for_method("MDA", ipc=10, budget="smoke")


def test_unknown_names_in_for_method():
    with pytest.raises(ValueError, match=f"method 'XX'.*{', '.join(METHODS)}"):
        Recipe.for_method("XX")
    with pytest.raises(ValueError, match=r"budget 'huge'.*smoke, lite, paper"):
        Recipe.for_method("M", budget="huge")
    with pytest.raises(ValueError, match=r"field 'learning_rate'.*lr_images"):
        Recipe.for_method("M", learning_rate=1)


@pytest.mark.parametrize(
    ("name", "nearest"), [("mda", "MDA"), ("MDDA", "MDA"), ("interleave", "Interleaved"), ("XX", None), (3, None)]
)
def test_an_unknown_name_gets_the_nearest_known_one_if_it_is_close(name, nearest):
    with pytest.raises(ValueError, match="unknown method") as error:
        choose(METHODS, "method", name)
    message = str(error.value)
    assert ", ".join(METHODS) in message
    assert message.endswith(f"did you mean {nearest!r}?") if nearest else "did you mean" not in message


def test_the_nearest_name_comes_after_the_other_choices():
    with pytest.raises(ValueError, match=r"or a spelling; did you mean 'MDA'\?$"):
        choose(METHODS, "method", "mda", "a spelling")
    with pytest.raises(ValueError, match="did you mean 'adaptive'"):
        Recipe(where="adaptiv")


def test_random_streams_are_repeatable_and_independent():
    def first(*path):
        return torch.rand(3, generator=generator(*path)).tolist()

    assert first(0, "network", 1) == first(0, "network", 1)
    others = [first(0, "network", 2), first(1, "network", 1), first(0, "batches", 1), first(0, "network1")]
    assert first(0, "network", 1) not in others
    assert len({tuple(o) for o in others}) == 4


def test_milestones():
    assert milestones(60) == [0, 1, 2, 5, 10, 20, 40, 60]
    assert milestones(1) == [0, 1]
