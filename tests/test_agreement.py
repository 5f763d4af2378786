"""gmlib against tests/reference.py, a plain version of the paper in float64."""

import itertools
from dataclasses import replace

import pytest
import reference
import torch
from conftest import make_data, tiny_recipe

import gmlib as gm
from gmlib import how, networks, where
from gmlib.algorithm import algorithm_1
from gmlib.analysis.matching import constant_S, pulls
from gmlib.lines import fresh_network, initial, streams_of
from gmlib.maxmin import noise_set
from gmlib.runtime import generator
from gmlib.speed import gradients
from gmlib.what import WHAT, union

EXPRESSIONS = {
    "d1": [(1.0, "d1")],
    "d2": [(1.0, "d2")],
    "d3": [(1.0, "d3")],
    "100*d4": [(100.0, "d4")],
    "d1 + d2": [(1.0, "d1"), (1.0, "d2")],
    "d1 + 0.1*d2": [(1.0, "d1"), (0.1, "d2")],
    "d1 + 100*d4": [(1.0, "d1"), (100.0, "d4")],
}


# Every pair of channels, images per class and equal or unequal classes occurs once.
PROBLEMS = [
    ((1, 8, 8), 1, (7, 2, 4)),
    ((1, 8, 8), 3, (4, 4, 4)),
    ((3, 8, 8), 1, (4, 4, 4)),
    ((3, 8, 8), 3, (7, 2, 4)),
]


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300)).item()


def problem(shape, ipc, counts, seed=0):
    """Data, a network, S, its labels and all real images of each class, in float64."""
    data = make_data(counts, shape, seed=seed)
    network = networks.build(
        "convnet", shape, len(counts), generator=generator(seed, "test"), width=4, depth=2, dtype=torch.float64
    )
    S = torch.randn(len(counts) * ipc, *shape, generator=generator(seed, "S"), dtype=torch.float64)
    labels = torch.arange(len(counts)).repeat_interleave(ipc)
    real = [data.of_class(c) for c in range(len(counts))]
    return data, network, S, labels, real


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("mode", WHAT)
def test_matching_loss_and_its_gradient(mode, expression):
    """Every way to get the gradients of the classes, beside one reference."""
    for shape, ipc, counts in PROBLEMS:
        data, network, S, labels, real = problem(shape, ipc, counts)
        S.requires_grad_()
        theta, weights = list(network.parameters()), [n / sum(counts) for n in counts]
        expected = [
            reference.matching_gradient(theta, S, labels, real, mode, EXPRESSIONS[expression], 2.5, k, weights)
            for k in ((0, 1) if mode == "interleaved" else (0,))  # the others do not ask for k
        ]
        for way in gradients.IMPLEMENTATIONS:
            gT_way = "loop" if way == "vmap" else way  # vmap needs classes of equal size
            gT = gradients.class_gradients(network, real, implementation=gT_way)
            gS = gradients.class_gradients(network, S.split(ipc), create_graph=True, implementation=way)
            for k, (value, theirs) in enumerate(expected):
                loss = WHAT[mode](how.distance(expression), gS, gT, lam=2.5, weights=data.class_weights, k=k)
                (ours,) = torch.autograd.grad(loss, S, retain_graph=True)
                case = f"{way} {shape} ipc {ipc} counts {counts} k {k}"
                assert abs(loss.item() - value) <= 1e-10 * max(1, abs(value)), case
                assert relative(ours, theirs) < 1e-8, case


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_distances(expression):
    rng = torch.Generator().manual_seed(3)
    shapes = [(4, 1, 3, 3), (4,), (4, 4, 3, 3), (2, 3, 5), (3, 16), (3,)]
    gS, gT = ([torch.randn(*s, generator=rng, dtype=torch.float64) for s in shapes] for _ in range(2))
    gS[0][1] = 0  # a dead filter on one side
    ours = how.distance(expression)(*([how.as_rows(g, g.ndim) for g in gs if g.ndim > 1] for gs in (gS, gT)))
    theirs = reference.distance(EXPRESSIONS[expression], gS, gT)
    assert abs(ours.item() - theirs.item()) < 1e-10 * max(1, theirs.item())


def test_grey_28_pixels_are_padded_to_32():
    _, network, S, labels, real = problem((1, 28, 28), 1, (2, 2))
    theta = list(network.parameters())
    assert relative(network(S), reference.convnet(theta, S)) < 1e-12
    S.requires_grad_()
    gS = gradients.class_gradients(network, S.split(1), create_graph=True)
    gT = gradients.class_gradients(network, real)
    loss = WHAT["multi"](how.distance("d1 + d2"), gS, gT, lam=2, weights=torch.tensor([0.5, 0.5]), k=0)
    (ours,) = torch.autograd.grad(loss, S)
    _, theirs = reference.matching_gradient(theta, S, labels, real, "multi", EXPRESSIONS["d1 + d2"])
    assert relative(ours, theirs) < 1e-8


def test_eq_5_gives_the_gradient_of_the_union_batch():
    """Compared with torch's own gradient of one mixed batch. The sizes differ, so the weights matter."""
    _, network, _, _, real = problem((3, 8, 8), 1, (5, 2, 4))
    sizes = torch.tensor([5, 2, 4], dtype=torch.float64)
    ours = union(gradients.class_gradients(network, real), sizes / sizes.sum())
    y = torch.arange(3).repeat_interleave(sizes.long())
    loss = torch.nn.functional.cross_entropy(network(torch.cat(real)), y)
    weights = [p for _, p in networks.matched(network)]
    for layer, theirs in zip(ours, torch.autograd.grad(loss, weights), strict=True):
        assert relative(layer, theirs.flatten(1)) < 1e-12
    unweighted = union(gradients.class_gradients(network, real), torch.full((3,), 1 / 3, dtype=torch.float64))
    assert any(relative(a, b) > 1e-3 for a, b in zip(unweighted, ours, strict=True)), "the weights matter here"


@pytest.mark.parametrize("way", [*gradients.IMPLEMENTATIONS, "recorded"])
@pytest.mark.parametrize(
    "choice",
    [
        {"what": "intra", "how": "d1", "where": "fixed", "inner_loops": 3, "zeta_theta": 4},
        {"what": "inter", "how": "d3", "where": "fixed", "inner_loops": 2, "zeta_theta": 3},
        {"what": "interleaved", "how": "d1", "where": "fixed", "outer_loops": 3, "inner_loops": 2, "zeta_theta": 2},
        {"what": "multi", "how": "d1 + d2", "where": "adaptive", "inner_loops": 3, "class_weights": "equal"},
        {"what": "multi", "how": "d1 + 0.1*d2", "where": "overfit", "inner_loops": 3, "lr_network": 0.3},
        {"what": "multi", "how": "d1 + d2", "where": "steps:3,1", "inner_loops": 4},
        {"what": "multi", "how": "d1 + d2", "where": "overfit-gap", "inner_loops": 3, "gap": 0.05, "lr_network": 0.1},
    ],
    ids=lambda choice: f"{choice['what']}-{choice['where']}",
)
def test_whole_runs_of_algorithm_1(choice, way, monkeypatch, request):
    """The reference gets the networks and batches that `condense` draws, and must find the same S and losses."""
    if way == "recorded":
        graphs = request.getfixturevalue("recorded")
        choice = {**choice, "outer_loops": 3}  # so that there are steps after the recording
    else:  # vmap needs classes of equal size
        fits = lambda x: way != "vmap" or len({*map(len, x)}) == 1  # noqa: E731
        monkeypatch.setattr(gradients, "fastest_implementation", lambda network, x, *_: way if fits(x) else "loop")
    data = make_data((8, 6, 7), (1, 8, 8))
    recipe = tiny_recipe(**{"ipc": 2, "seed": 5, "momentum_network": 0.5, "class_weights": "share", **choice})
    T, zeta = recipe.schedule()
    theta0, batches, validation = [], [], []
    for k in range(recipe.outer_loops):
        theta0.append([p.detach() for p in fresh_network(data, recipe, k).parameters()])
        drawing = [generator(recipe.seed, "batches", k, t) for t in range(T)]
        batches.append([[data.sample(c, recipe.batch_real, rng) for c in range(3)] for rng in drawing])
        held_out = [generator(recipe.seed, "validation", k, t) for t in range(T)]
        validation.append([data.sample_any(where.VALIDATION_BATCH, rng) for rng in held_out])
    S = gm.condense(data, recipe, device="cpu", progress=False)
    schedules = {"fixed": lambda t: zeta, "adaptive": reference.zeta_adaptive, "steps:3,1": lambda t: (3, 1, 1)[t]}
    theirs, losses = reference.algorithm1(
        initial(data, recipe),
        S.labels,
        theta0,
        batches,
        recipe.what,
        EXPRESSIONS[recipe.how],
        3,
        T,
        schedules.get(recipe.where, lambda t: where.MAX_STEPS),
        recipe.lr_images,
        recipe.momentum_images,
        recipe.lr_network,
        recipe.momentum_network,
        weights=[8 / 21, 6 / 21, 7 / 21] if recipe.class_weights == "share" else None,
        val_batches=validation if recipe.where.startswith("overfit") else None,
        gap=recipe.gap if recipe.where == "overfit-gap" else None,
    )
    assert relative(S.images, theirs) < 1e-8
    assert way != "recorded" or graphs.made > 0
    for k, entry in enumerate(S.history):
        assert entry["loss"] == pytest.approx(sum(losses[k * T : (k + 1) * T]) / T, rel=1e-9)
    if recipe.where.startswith("overfit"):
        seen = [d for entry in S.history for d in entry["detections"]]
        assert seen, "without a detection this case tests nothing"
        assert any(i < where.MAX_STEPS - 1 for _, i, *_ in seen)
    assert S.images.dtype == torch.float64


def test_float32_equals_float64_up_to_rounding():
    data = make_data((8, 8, 8), (1, 8, 8))
    recipe = tiny_recipe(ipc=2, how="d1 + d2", what="multi", outer_loops=1, inner_loops=1, zeta_theta=1)
    double = gm.condense(data, recipe, device="cpu", progress=False).images
    single = gm.condense(data.to(dtype=torch.float32), recipe, device="cpu", progress=False).images
    assert single.dtype == torch.float32
    assert relative(single.double(), double) < 1e-4


def test_eq_10_several_updates_of_S_at_each_theta():
    """zeta_S = 3 equals three inner iterations of the reference in which theta takes no step."""
    data = make_data((8, 6, 7))
    recipe = tiny_recipe(ipc=2, what="multi", outer_loops=1, inner_loops=1, zeta_theta=1, zeta_S=3)
    rng = generator(recipe.seed, "batches", 0, 0)
    batches = [[[data.sample(c, recipe.batch_real, rng) for c in range(3)] for _ in range(3)]]
    theta0 = [[p.detach() for p in fresh_network(data, recipe, 0).parameters()]]
    S = gm.condense(data, recipe, device="cpu", progress=False)
    theirs, _ = reference.algorithm1(
        initial(data, recipe),
        S.labels,
        theta0,
        batches,
        "multi",
        EXPRESSIONS["d1"],
        3,
        3,
        lambda t: 0,
        recipe.lr_images,
        recipe.momentum_images,
        0.01,
        0.5,
    )
    assert relative(S.images, theirs) < 1e-8


def test_sampled_inter_class_batches():
    """One update with mixed batches, as in the released scripts, compared with Eq. 6 by hand."""
    data = make_data((8, 6, 7))
    once = {"outer_loops": 1, "inner_loops": 1, "zeta_theta": 1}
    recipe = tiny_recipe(ipc=2, what="multi", inter_batches="sampled", momentum_images=0, **once)
    network = fresh_network(data, recipe, 0)
    theta = list(network.parameters())
    rng, mixed = generator(recipe.seed, "batches", 0, 0), generator(recipe.seed, "mixed", 0, 0)
    real = [data.sample(c, recipe.batch_real, rng) for c in range(3)]
    chosen = torch.randperm(6, generator=mixed)
    x, y = data.sample_any(1024, mixed)
    assert len(y) == 21 and sorted(y.tolist()) == data.train_labels.tolist(), "all real images"
    S0 = initial(data, recipe).requires_grad_()
    labels = torch.arange(3).repeat_interleave(2)
    gS = [reference.gradient(theta, S0[2 * c : 2 * c + 2], labels[2 * c : 2 * c + 2], True) for c in range(3)]
    gT = [reference.gradient(theta, real[c], torch.full((len(real[c]),), c)) for c in range(3)]
    loss = sum(reference.distance(EXPRESSIONS["d1"], a, b) for a, b in zip(gS, gT, strict=True))
    mixed_S = reference.gradient(theta, S0[chosen], labels[chosen], True)
    loss = loss + 3 * reference.distance(EXPRESSIONS["d1"], mixed_S, reference.gradient(theta, x, y))
    (dS,) = torch.autograd.grad(loss, S0)
    S = gm.condense(data, recipe, device="cpu", progress=False)
    assert relative(S.images, (S0 - 0.1 * dS).detach()) < 1e-8
    assert S.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-10)


def test_pulls_of_each_part_of_the_loss():
    """Value and gradient of each term alone, at both levels, at every theta of one outer iteration."""
    data = make_data()
    recipe = tiny_recipe(
        ipc=2, what="multi", how="d1 + 0.1*d2", where="fixed", inner_loops=3, zeta_theta=2, lr_images=0.3
    )
    found = pulls(data, recipe, k=1, device="cpu").set_index(["t", "what", "how"]).sort_index()
    assert len(found) == 3 * 4 and found["steps"].groupby("t").first().tolist() == [0, 2, 4]
    S, labels = initial(data, recipe), torch.arange(3).repeat_interleave(2)
    theta, buffers = [p.detach() for p in fresh_network(data, recipe, 1).parameters()], None
    for t in range(3):
        theta = [p.requires_grad_() for p in theta]
        real = data.sample_classes(recipe.batch_real, streams_of(recipe, 1, t)["batches"])
        of_class = [reference.gradient(theta, *reference.of_class(S, labels, c)) for c in range(3)]
        matched = {"inter": [reference.union_gradient(of_class)], "intra": of_class}
        terms = {"d1": (1.0, "d1"), "0.1*d2": (0.1, "d2")}
        for what, name in itertools.product(matched, terms):
            ours = found.loc[t, what, name]
            loss, dS = reference.matching_gradient(theta, S, labels, real, what, [terms[name]])
            rows = [row for g in matched[what] for parameter in g for row in reference.rows(parameter)]
            assert ours["loss"] == pytest.approx(loss, rel=1e-10)
            assert ours["pull"] == pytest.approx(dS.norm().item(), rel=1e-10)
            assert ours["step"] == pytest.approx(0.3 * (dS.norm() / S.norm()).item(), rel=1e-10)
            assert ours["gradient"] == pytest.approx(torch.cat(rows).norm().item(), rel=1e-10)
        assert found.loc[t, "loss_S"].iloc[0] == pytest.approx(reference.loss(theta, S, labels).item(), rel=1e-10)
        theta, buffers = reference.update_theta(
            theta, buffers, S, labels, 2, recipe.lr_network, recipe.momentum_network
        )


def test_pulls_of_one_level_and_of_a_given_set():
    fields = {"ipc": 2, "inner_loops": 2, "zeta_theta": 1}
    data, recipe = make_data(), tiny_recipe(**fields, what="intra")
    found = pulls(data, recipe, device="cpu")
    assert found[["what", "how"]].drop_duplicates().values.tolist() == [["intra", "d1"]]
    S = gm.condense(data, recipe, "cpu", progress=False)
    of_S = pulls(data, recipe, S, device="cpu")
    assert not of_S["pull"].equals(found["pull"])
    assert of_S.equals(pulls(data, recipe, S, device="cpu")), "the same bits again"
    for k, level in ((0, "intra"), (1, "inter")):
        interleaved, alone = (pulls(data, tiny_recipe(**fields, what=what), k=k) for what in ("interleaved", level))
        assert interleaved.equals(alone)


def test_pulls_compares_the_gradients_of_a_run_with_batchnorm():
    fields = {"ipc": 2, "inner_loops": 2, "zeta_theta": 1, "zeta_S": 2, "network": "convnet:norm=batch"}
    data, recipe = make_data(), tiny_recipe(**fields, what="intra")
    found = pulls(data, recipe, device="cpu")
    state, only_k = constant_S(data, recipe, initial(data, recipe), 0)
    updates = list(algorithm_1(data, only_k, state))
    assert torch.equal(state.S, initial(data, recipe)), "S stays"
    for row, update in zip(found.itertuples(), updates, strict=True):
        assert row.loss == pytest.approx(update.losses[0].item(), rel=1e-10)
        gradient = torch.cat([layer.flatten() for layer in update.gS]).norm().item()
        assert row.gradient == pytest.approx(gradient, rel=1e-10)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {"S": noise_set(make_data(counts=(12, 12)), 2)}, "class '2'"),
        ({}, {"S": noise_set(make_data(), 5)}, "5 images"),
        ({}, {"S": 3}, "SyntheticSet"),
        ({}, {"k": -1}, "k=-1"),
        ({"what": "multi", "inter_batches": "sampled"}, {}, "inter_batches"),
    ],
)
def test_pulls_raises_if_its_arguments_do_not_fit(fields, options, message):
    recipe = tiny_recipe(ipc=2, inner_loops=2, zeta_theta=1, **{"what": "intra", **fields})
    with pytest.raises(ValueError, match=message):
        pulls(make_data(), recipe, device="cpu", **options)


def test_the_inter_class_angle_pulls_harder_the_better_theta_fits_S(digits):
    """This is why M and MD change real images a lot if theta takes many steps. The other parts stay small."""
    fields = {"width": 16, "outer_loops": 1, "inner_loops": 6, "zeta_theta": 50}
    found = pulls(digits, gm.Recipe.for_method("MD", "digits", 10, "smoke", **fields), device="cpu")
    steps = found.pivot(index="t", columns=["what", "how"], values="step")
    rose = steps.iloc[-1] / steps.iloc[0]
    assert found["loss_S"].iloc[-1] < 0.5 * found["loss_S"].iloc[0], "theta fits S"
    assert rose.idxmax() == ("inter", "d1") and rose["inter", "d1"] > 5
    assert steps.iloc[-1]["inter", "d1"] > 5 * steps.iloc[-1].drop(("inter", "d1")).max()
    union = found[(found["what"] == "inter") & (found["how"] == "d1")]["gradient"]
    assert union.iloc[-1] < 0.7 * union.iloc[0], "training theta on S makes this gradient small"


def test_images_three_times_as_large_move_a_ninth_as_far(digits):
    """Instance norm makes the images equal, so the pull is a third, and |S| is three times as large."""
    recipe = gm.Recipe.for_method("MD", "digits", 10, "smoke", width=16, inner_loops=2, zeta_theta=20)
    images = initial(digits, recipe)
    small, large = (
        pulls(digits, recipe, replace(noise_set(digits, 10), images=factor * images), device="cpu")
        for factor in (1, 3)
    )
    assert small.equals(pulls(digits, recipe, device="cpu")), "pulls takes S_0 by default"
    assert (9 * large["step"] / small["step"]).tolist() == pytest.approx([1.0] * len(small), abs=0.25)
