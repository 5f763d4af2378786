"""Section 5: distances to the trap in closed form, against a second implementation, and against torch's autograd."""

import copy
import dataclasses
import math
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from conftest import make_data, tiny_recipe
from messages import refuses
from torch import nn
from torch.nn.utils import parameters_to_vector

import gmlib as gm
from gmlib import maxmin, networks
from gmlib.analysis.training import by_eps
from gmlib.evaluation import accuracy
from gmlib.lines import initial
from gmlib.maxmin import descend, loss_and_gradient, noise_set, reach, walk
from gmlib.runtime import generator
from gmlib.speed import forward, passes

QUICK = {"n_starts": 2, "width": 3, "depth": 2, "device": "cpu", "progress": False}


def start_of_reach(j, seed=0):
    """The network of start j in `reach`, with the choices of QUICK."""
    rng = generator(seed, "reach", j)
    return networks.build("convnet", (1, 8, 8), 3, generator=rng, width=3, depth=2, dtype=torch.float64)


def quadratic(a):
    """L = a theta^2 / 2 and its gradient."""
    return lambda theta: (a * theta[0].square().sum() / 2, [a * theta[0]])


# ---- walk and descend --------------------------------------------------------------------------------------


def test_walk_yields_at_each_point():
    """L = a theta^2 / 2: theta_n = (1 - lr a)^n theta0."""
    a, lr, theta = 2.0, 0.1, [torch.tensor([3.0], dtype=torch.float64)]
    for n, (step, loss, (gradient,)) in enumerate(walk(quadratic(a), theta, lr, 4)):
        there = 3.0 * (1 - lr * a) ** n
        found = theta[0].item(), loss.item(), gradient.item()
        assert step == n and found == pytest.approx((there, a * there**2 / 2, a * there), rel=1e-12)
    assert n == 4


def test_one_dimensional_quadratic_by_hand():
    """theta_n = (1 - lr a)^n theta0, so |grad| < eps from n = log(eps / (a theta0)) / log(1 - lr a)."""
    a, theta0, lr = 2.0, 3.0, 0.1
    theta = [torch.tensor([theta0], dtype=torch.float64)]
    stops = list(descend(quadratic(a), theta, [0.5, 5.0, 1e-3], lr, 100))
    assert [s.eps for s in stops] == [5.0, 0.5, 1e-3] and all(s.reached for s in stops)
    for stop in stops:
        n = math.ceil(math.log(stop.eps / (a * theta0)) / math.log(1 - lr * a))
        there = theta0 * (1 - lr * a) ** n
        assert stop.steps == n
        assert stop.distance == pytest.approx(theta0 - there, rel=1e-12)
        assert stop.gradient_norm == pytest.approx(a * there, rel=1e-12)
        assert stop.loss == pytest.approx(a * there**2 / 2, rel=1e-12)
    assert [s.steps for s in stops] == [1, 12, 39]


def test_quadratic_with_several_eigenvalues_and_tensors():
    """Each eigen-direction has its own factor, one of them negative. The closed form gives the first n."""
    a = torch.tensor([0.3, 1.0, 4.0, 15.0], dtype=torch.float64)
    start = torch.tensor([1.0, -2.0, 0.5, 0.25], dtype=torch.float64)
    theta = [start[:1].clone(), start[1:].clone().view(3, 1)]  # like parameters: tensors of different shapes

    def loss(v):
        flat = torch.cat([v[0], v[1].flatten()])
        g = a * flat
        return (a * flat.square()).sum() / 2, [g[:1], g[1:].view(3, 1)]

    lr, eps = 0.1, [3.0, 1.0, 0.1, 0.01]
    stops = list(descend(loss, theta, eps, lr, 1000))
    at = (1 - lr * a.numpy())[None] ** np.arange(1001)[:, None] * start.numpy()  # (n, 4)
    norms = np.linalg.norm(a.numpy() * at, axis=1)
    for stop, e in zip(stops, eps, strict=True):
        n = int(np.argmax(norms < e))
        assert (stop.eps, stop.steps) == (e, n)
        assert stop.distance == pytest.approx(np.linalg.norm(at[n] - start.numpy()), rel=1e-10)


def test_logistic_loss_of_two_separable_points():
    """Points u and -u with labels 1 and 0: L = log(1 + exp(-w.u)), grad = -sigmoid(-w.u) u, so w walks along u.

    ||grad|| < eps if w.u > log(|u|/eps - 1), so the distance is this minus w0.u, over |u|. The first point beyond it
    is within one step, lr times the gradient g before it. g is below eps / (1 - lr |u|^2 / 4), since the gradient
    changes by at most |u|^2 / 4 per unit of length, so by at most lr g |u|^2 / 4 in this step. For a small lr the
    bounds meet.
    """
    u = torch.tensor([1.2, -0.5], dtype=torch.float64)
    size = u.norm().item()
    x, y = torch.stack([u, -u]), torch.tensor([1.0, 0.0], dtype=torch.float64)
    w0 = torch.tensor([-0.3, 0.4], dtype=torch.float64)

    def loss(v):
        value = F.binary_cross_entropy_with_logits(x @ v[0], y)
        return value.detach(), torch.autograd.grad(value, v)

    for lr in (0.5, 0.01):
        w = [w0.clone().requires_grad_()]
        for stop in descend(loss, w, [0.8, 0.3, 0.05], lr, 20_000):
            closed = (math.log(size / stop.eps - 1) - (w0 @ u).item()) / size
            assert closed < stop.distance < closed + lr * stop.eps / (1 - lr * size**2 / 4)
            along = (w[0].detach() - w0) @ u / size
            assert along.item() == pytest.approx(stop.distance, rel=1e-9), "w is at this point, straight along u"
            assert stop.loss == pytest.approx(math.log1p(math.exp(-(w[0].detach() @ u).item())), rel=1e-9)


def test_a_start_below_the_threshold_takes_no_step():
    theta = [torch.ones(2)]
    (stop,) = descend(lambda v: (v[0].sum(), [torch.full((2,), 0.1)]), theta, [1.0], 0.1, 5)
    assert (stop.reached, stop.steps, stop.distance) == (True, 0, 0.0)
    assert torch.equal(theta[0], torch.ones(2))


def test_the_threshold_itself_is_not_below_it():
    stops = list(descend(lambda v: (v[0].sum(), [torch.tensor([0.5])]), [torch.ones(1)], [0.5], 0.1, 3))
    assert not stops[0].reached


def test_thresholds_that_are_never_reached():
    """A linear loss has the same gradient everywhere."""
    calls = []

    def loss(v):
        calls.append(1)
        return v[0].sum(), [torch.ones(4)]

    stops = list(descend(loss, [torch.zeros(4)], [3.0, 0.1, 1.0], 0.1, 7))
    assert [(s.eps, s.reached) for s in stops] == [(3.0, True), (1.0, False), (0.1, False)]
    assert math.isnan(stops[1].distance) and math.isnan(stops[1].steps)
    assert stops[1].gradient_norm == 2.0 and stops[1].loss == pytest.approx(-4 * 0.7), "the last ones, after 7 steps"
    assert len(calls) == 8


def test_a_descent_that_diverges_ends_early():
    calls = []

    def loss(v):
        calls.append(1)
        return quadratic(10.0)(v)

    (stop,) = descend(loss, [torch.ones(1)], [0.1], 1.0, 10_000)  # |1 - lr a| = 9
    assert not stop.reached and not math.isfinite(stop.gradient_norm)
    assert len(calls) < 100


# ---- loss and gradient in batches --------------------------------------------------------------------------


def test_batches_change_only_rounding(monkeypatch):
    data, f = make_data((5, 5, 4)), start_of_reach(0)
    theta = list(f.parameters())
    whole = loss_and_gradient(f, theta, data.train_images, data.train_labels)
    expected = torch.autograd.grad(F.cross_entropy(f(data.train_images), data.train_labels), theta)
    monkeypatch.setattr(maxmin, "BATCH", 4)  # 4 + 4 + 4 + 2
    batched = loss_and_gradient(f, theta, data.train_images, data.train_labels)
    assert batched[0].item() == pytest.approx(whole[0].item(), rel=1e-12) and not batched[0].requires_grad
    for a, b, c in zip(whole[1], batched[1], expected, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=0)
        torch.testing.assert_close(b, c)


def test_a_wide_network_takes_the_faster_pass_in_parts_of_the_cache(monkeypatch):
    f = networks.build("convnet", (1, 28, 28), 3, generator=generator(0, "f"), width=128, depth=3)
    x, y = torch.randn(50, 1, 28, 28, generator=generator(0, "x")), torch.arange(50) % 3
    sizes, faster = [], forward.fast_forward(f, x)

    def counted(part):
        sizes.append(len(part))
        return faster(part)

    monkeypatch.setattr(maxmin, "fast_forward", lambda network, images: counted)
    loss, gradient = loss_and_gradient(f, list(f.parameters()), x, y)
    assert faster is not f and len(sizes) > 1 and sum(sizes) == 50 and max(sizes) == passes.pass_size(f, x)
    plain = copy.deepcopy(f).double()
    expected = F.cross_entropy(plain(x.double()), y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(gradient, torch.autograd.grad(expected, list(plain.parameters())), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-6  # the norm removes a convolution's bias: its gradient is 0


def test_batchnorm_in_train_mode_sees_all_images_at_once(monkeypatch):
    f = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(3))
    x, y = torch.randn(30, 1, 8, 8, generator=generator(0, "x")), torch.arange(30) % 3
    f(x)
    monkeypatch.setattr(maxmin, "pass_size", partial(passes.pass_size, cpu_cache=1))
    assert passes.fitting(f, x, 1) == 1
    loss, _ = loss_and_gradient(f, list(f.parameters()), x, y)
    assert loss.item() == pytest.approx(F.cross_entropy(f(x), y).item(), rel=1e-6)


# ---- reach -------------------------------------------------------------------------------------------------


def trajectory(S, j, eps, lr, max_steps, seed=0):
    """(network, steps, distance, loss, norm) at the first point below eps, with torch.optim.SGD and flat vectors."""
    f = start_of_reach(j, seed)
    theta0 = parameters_to_vector(f.parameters()).detach().clone()
    optimiser = torch.optim.SGD(f.parameters(), lr=lr)
    for step in range(max_steps + 1):
        optimiser.zero_grad()
        loss = F.cross_entropy(f(S.images), S.labels)
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in f.parameters()]).norm().item()
        if norm < eps:
            return f, step, (parameters_to_vector(f.parameters()).detach() - theta0).norm().item(), loss.item(), norm
        optimiser.step()
    raise AssertionError("choose an eps that is reached")


def test_reach_against_a_second_implementation():
    data = make_data((20, 20, 20), n_test=60)
    S = gm.coreset("random", data, 2)
    eps = [0.2, 0.5]
    table = reach(S, eps, **QUICK, data=data, lr=0.1, max_steps=500)
    assert table[["start", "eps"]].to_numpy().tolist() == [[0, 0.5], [0, 0.2], [1, 0.5], [1, 0.2]]
    assert table["reached"].all() and table["steps"].min() > 0
    for row in table.itertuples():
        f, steps, distance, loss, norm = trajectory(S, row.start, row.eps, 0.1, 500)
        assert row.steps == steps
        assert (row.distance, row.train_loss, row.gradient_norm) == pytest.approx((distance, loss, norm), rel=1e-9)
        assert row.test_accuracy == accuracy(f, data.test_images, data.test_labels)
        f.zero_grad()
        real = F.cross_entropy(f(data.train_images), data.train_labels)
        real.backward()
        norm = torch.cat([p.grad.flatten() for p in f.parameters()]).norm().item()
        assert (row.real_loss, row.real_gradient_norm) == pytest.approx((real.item(), norm), rel=1e-9)
    assert table["distance"].nunique() == 4


def test_the_seed_decides_which_real_images_are_used():
    data = make_data((20, 20, 20))
    S = gm.coreset("random", data, 1)
    quick = {**QUICK, "n_starts": 1, "data": data, "max_steps": 1}
    for seed in (0, 1):
        chosen = torch.randperm(60, generator=generator(seed, "reach real"))[:7]
        expected = F.cross_entropy(
            start_of_reach(0, seed)(data.train_images[chosen]), data.train_labels[chosen]
        ).item()
        found = reach(S, 50.0, seed=seed, max_real=7, **quick)
        assert found["real_loss"].item() == pytest.approx(expected, rel=1e-12)


def test_thresholds_reached_at_the_same_step_share_the_measurements():
    data = make_data()
    table = reach(gm.coreset("random", data, 1), [90.0, 50.0], **QUICK, data=data)
    for _, rows in table.groupby("start"):
        assert (rows["steps"] == 0).all() and (rows["distance"] == 0).all()
        assert rows.drop(columns="eps").nunique().eq(1).all() and rows.notna().all(axis=None)


def test_without_data_nothing_is_measured_on_it():
    table = reach(gm.coreset("random", make_data(), 1), [50.0], **QUICK)
    assert table["reached"].all()
    assert table[["distance", "steps", "train_loss", "gradient_norm"]].notna().all(axis=None)
    assert table[["test_accuracy", "real_loss", "real_gradient_norm"]].isna().all(axis=None)


def test_the_real_data_are_used_from_the_first_starts_only():
    data, on_real = make_data(), ["test_accuracy", "real_loss", "real_gradient_norm"]
    S = gm.coreset("random", data, 1)
    every = reach(S, [90.0, 0.5], **QUICK, data=data, lr=0.1)
    first = reach(S, [90.0, 0.5], **QUICK, data=data, lr=0.1, n_real=1)
    assert every[on_real].notna().all(axis=None)
    expected = every.copy()
    expected.loc[every["start"] > 0, on_real] = math.nan
    pd.testing.assert_frame_equal(first, expected, check_exact=True)
    means = by_eps(first).set_index("eps").loc[0.5, on_real]
    assert means.tolist() == every.query("start == 0 and eps == 0.5")[on_real].iloc[0].tolist()


def test_a_threshold_that_is_not_reached_gives_the_last_gradient():
    data = make_data()
    S = gm.coreset("random", data, 1)
    table = reach(S, [1e-9], **{**QUICK, "n_starts": 1}, data=data, max_steps=3, lr=0.01)
    row = table.iloc[0]
    assert not row["reached"] and table["reached"].dtype == bool and table["steps"].dtype == float
    assert table[["steps", "distance", "test_accuracy", "real_loss", "real_gradient_norm"]].isna().all(axis=None)
    f = start_of_reach(0)
    theta = list(f.parameters())
    for _ in range(3):
        gradient = torch.autograd.grad(F.cross_entropy(f(S.images), S.labels), theta)
        with torch.no_grad():
            for p, g in zip(theta, gradient, strict=True):
                p -= 0.01 * g
    last = torch.autograd.grad(F.cross_entropy(f(S.images), S.labels), theta)
    assert row["gradient_norm"] == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in last)), rel=1e-9)


def test_data_as_S_equals_a_set_of_all_training_images(monkeypatch):
    data = make_data((4, 4, 4))
    as_set = gm.coreset("random", data, 4)
    monkeypatch.setattr(maxmin, "BATCH", 5)
    quick = {**QUICK, "data": data, "lr": 0.1, "max_steps": 300}
    of_data, of_set = reach(data, [0.5], **quick), reach(as_set, [0.5], **quick)
    assert of_data["reached"].all() and (of_data["steps"] > 0).all()
    pd.testing.assert_frame_equal(of_data, of_set, rtol=1e-9)
    assert of_data["real_gradient_norm"].to_numpy() == pytest.approx(of_data["gradient_norm"].to_numpy(), rel=1e-9)


def test_the_same_seed_gives_the_same_bits_and_fewer_starts_are_the_first_of_more():
    data = make_data(dtype=torch.float32)
    S = gm.coreset("random", data, 1)
    quick = {**QUICK, "data": data, "lr": 0.1, "max_steps": 100}
    three = reach(S, [0.8], **{**quick, "n_starts": 3})
    pd.testing.assert_frame_equal(reach(S, [0.8], **quick), three[:2], check_exact=True)
    assert not np.isclose(reach(S, [0.8], **quick, seed=1)["distance"], three["distance"][:2]).any()


def test_the_default_network_has_the_size_in_the_recipe():
    S = gm.coreset("random", make_data(), 1)
    small = dataclasses.replace(S, recipe={"width": 3, "depth": 2})
    quick = {**QUICK, "width": None, "depth": None, "max_steps": 1}
    expected = reach(S, 1e-6, **{**QUICK, "max_steps": 1})
    pd.testing.assert_frame_equal(reach(small, 1e-6, **quick), expected, check_exact=True)
    wide = reach(S, 1e-6, **{**QUICK, "width": 128, "depth": 3, "max_steps": 1})
    pd.testing.assert_frame_equal(reach(S, 1e-6, **quick), wide, check_exact=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eps": []}, ["eps=[]", "positive"]),
        ({"eps": [0.1, 0.0]}, ["eps=[0.1, 0.0]"]),
        ({"eps": [-1]}, ["eps=[-1.0]"]),
        ({"eps": [math.nan]}, ["eps=[nan]"]),
        ({"eps": "small"}, ["eps is a str"]),
        ({"width": -1}, ["width=-1", "at least 1"]),
        ({"seed": "a"}, ["seed='a'"]),
        ({"n_starts": 0}, ["n_starts=0", "at least 1"]),
        ({"max_steps": 0}, ["max_steps=0"]),
        ({"max_steps": 2.5}, ["max_steps=2.5"]),
        ({"n_real": 0}, ["n_real=0", "at least 1"]),
        ({"max_real": 0}, ["max_real=0"]),
        ({"lr": 0}, ["lr=0", "positive"]),
        ({"lr": math.inf}, ["lr=inf"]),
        ({"network": "vit"}, ["unknown network 'vit'"]),
        ({"depth": 9}, ["depth 9"]),
    ],
)
def test_bad_values_are_refused(change, words):
    S = gm.coreset("random", make_data(), 1)
    with refuses(ValueError, *words):
        reach(S, **{"eps": [0.1], **QUICK, **change})


def test_a_set_of_other_data_is_refused():
    S = gm.coreset("random", make_data((3, 3)), 1)
    with refuses(ValueError, "lacks the class '2'"):
        reach(S, [0.1], **QUICK, data=make_data((3, 3, 3)))
    with refuses(ValueError, "mean (0.1,)"):
        reach(dataclasses.replace(S, mean=(0.1,)), [0.1], **QUICK, data=make_data((3, 3)))


def test_the_deadline_stops_it():
    S = gm.coreset("random", make_data(), 1)
    with refuses(gm.OutOfTime, "out of time", "again with more time"):
        reach(S, [0.1], **QUICK, deadline=time.monotonic() - 1)
    with refuses(ValueError, "deadline='soon'"):
        reach(S, [0.1], **QUICK, deadline="soon")


@pytest.mark.parametrize("eps", [[[0.5], [0.1, 0.2]], ["a"], [], [-1.0], [float("nan")], "0.1", None])
def test_thresholds_that_are_no_numbers_are_refused(eps):
    with refuses(ValueError, "eps"):
        reach(gm.coreset("random", make_data(), 1), eps, **QUICK)


# ---- by_eps ------------------------------------------------------------------------------------------------


def test_the_summary_over_starts_by_hand():
    rows = [
        # start eps reached steps distance train_loss gradient_norm test_accuracy real_loss real_gradient_norm
        (0, 1.0, True, 10, 1.0, 0.5, 0.9, 60.0, 1.0, 2.0),
        (0, 0.1, False, np.nan, np.nan, 0.4, 0.5, np.nan, np.nan, np.nan),
        (1, 1.0, True, 30, 3.0, 0.7, 0.9, 70.0, 2.0, 4.0),
        (1, 0.1, True, 99, 7.0, 0.1, 0.05, 80.0, 3.0, 5.0),
        (2, 1.0, True, 20, 2.0, 0.6, 0.9, 80.0, 3.0, 9.0),
        (2, 0.1, False, np.nan, np.nan, 0.3, 0.2, np.nan, np.nan, np.nan),
    ]
    table = pd.DataFrame(rows, columns=reach(noise_set(make_data(), 1), [90.0], **QUICK).columns)
    found = by_eps(table)
    assert found["eps"].tolist() == [1.0, 0.1]
    expected = {
        "starts": [3, 3],
        "reached": [1.0, 1 / 3],
        "min_distance": [1.0, 7.0],
        "distance_q05": [1.1, 7.0],
        "distance_q25": [1.5, 7.0],
        "distance_q50": [2.0, 7.0],
        "distance_q75": [2.5, 7.0],
        "distance_q95": [2.9, 7.0],
        "median_steps": [20, 99],
        "test_accuracy": [70.0, 80.0],
        "train_loss": [0.6, 0.1],
        "real_loss": [2.0, 3.0],
        "real_gradient_norm": [5.0, 5.0],
    }
    assert found.columns.tolist() == ["eps", *expected]
    for name, values in expected.items():
        assert found[name].tolist() == pytest.approx(values, rel=1e-12), name

    two = pd.concat([table.assign(method="MD"), table[table["eps"] == 0.1].assign(method="DC", reached=False)])
    apart = by_eps(two, by=["method"])
    assert apart[["method", "eps"]].to_numpy().tolist() == [["DC", 0.1], ["MD", 1.0], ["MD", 0.1]]
    pd.testing.assert_frame_equal(apart[1:].drop(columns="method").reset_index(drop=True), found)
    assert apart.loc[0, "reached"] == 0
    assert apart.loc[0, "min_distance":].isna().all(), "no distance if no start reached eps"


# ---- noise -------------------------------------------------------------------------------------------------


def test_noise_is_what_a_run_starts_from():
    data = make_data()
    S = noise_set(data, 2, seed=4)
    assert torch.equal(S.images, initial(data, tiny_recipe(ipc=2, inner_loops=1, zeta_theta=1, seed=4)))
    assert S.labels.tolist() == [0, 0, 1, 1, 2, 2] and S.images.dtype == torch.float64
    assert S.recipe == {"method": "noise", "dataset": "made-up", "ipc": 2, "seed": 4}
    assert not torch.equal(noise_set(data, 2, seed=5).images, S.images)
    many = noise_set(make_data((2, 2), shape=(3, 16, 16)), 7).images  # more images than the classes have
    assert scipy.stats.kstest(many.flatten().numpy(), "norm").pvalue > 1e-3
    with pytest.raises(ValueError, match="ipc=0"):
        noise_set(data, 0)
