"""Section 5: distances to the trap known in closed form, a second implementation, scipy, and torch's own autograd."""

import dataclasses
import math
import sys

import gmreport as report
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from conftest import make_data, tiny_recipe
from torch.nn.utils import parameters_to_vector

import gmlib as gm
from gmlib import Data, SyntheticSet, networks
from gmlib.analysis.statistics import rank_correlation
from gmlib.analysis.training import alignment, by_eps, paths, plane
from gmlib.evaluation import accuracy
from gmlib.lines import initial
from gmlib.maxmin import descend, loss_and_gradient, noise_set, reach, walk
from gmlib.runtime import generator

QUICK = {"n_starts": 2, "width": 3, "depth": 2, "device": "cpu", "progress": False}
module = sys.modules["gmlib.maxmin"]  # the package may offer the function under this name


def network_of(seed, j, dtype=torch.float64):
    return networks.build(
        "convnet", (1, 8, 8), 3, generator=generator(seed, "reach", j), width=3, depth=2, dtype=dtype
    )


# ---- walk and descend


def test_walk_is_there_while_one_looks():
    """L = a theta^2 / 2: theta_n = (1 - lr a)^n theta0."""
    a, lr, theta = 2.0, 0.1, [torch.tensor([3.0], dtype=torch.float64)]
    for n, (step, loss, (gradient,)) in enumerate(
        walk(lambda v: (a * v[0].square().sum() / 2, [a * v[0]]), theta, lr, 4)
    ):
        there = 3.0 * (1 - lr * a) ** n
        found = theta[0].item(), loss.item(), gradient.item()
        assert step == n and found == pytest.approx((there, a * there**2 / 2, a * there), rel=1e-12)
    assert n == 4


def test_one_dimensional_quadratic_by_hand():
    """L = a theta^2 / 2: theta_n = (1 - lr a)^n theta0, so |grad| < eps from n = log(eps / (a theta0)) / log(1 - lr a) on."""
    a, theta0, lr = 2.0, 3.0, 0.1
    theta = [torch.tensor([theta0], dtype=torch.float64)]
    stops = list(descend(lambda v: (a * v[0].square().sum() / 2, [a * v[0]]), theta, [0.5, 5.0, 1e-3], lr, 100))
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
    """Each eigen-direction shrinks by its own factor; one of them swings (1 - lr a < 0). First n by scanning the closed form."""
    a = torch.tensor([0.3, 1.0, 4.0, 15.0], dtype=torch.float64)
    start = torch.tensor([1.0, -2.0, 0.5, 0.25], dtype=torch.float64)
    theta = [
        start[:1].clone(),
        start[1:].clone().view(3, 1),
    ]  # as parameters come: several tensors of different shapes

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

    ||grad|| < eps once w.u > log(|u|/eps - 1): the distance is that minus w0.u, over |u|. The first point beyond it is within
    one step, lr times the gradient g before it. That is below eps / (1 - lr |u|^2 / 4), since the gradient changes by at most
    |u|^2 / 4 per unit of length, so by at most lr g |u|^2 / 4 in that step. For a small lr the bounds meet.
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
            assert along.item() == pytest.approx(stop.distance, rel=1e-9), (
                "straight along u, and w is there while we look"
            )
            assert stop.loss == pytest.approx(math.log1p(math.exp(-(w[0].detach() @ u).item())), rel=1e-9)


def test_below_the_threshold_from_the_start():
    theta = [torch.ones(2)]
    (stop,) = descend(lambda v: (v[0].sum(), [torch.full((2,), 0.1)]), theta, [1.0], 0.1, 5)
    assert (stop.reached, stop.steps, stop.distance) == (True, 0, 0.0)
    assert torch.equal(theta[0], torch.ones(2))


def test_the_threshold_itself_is_not_below_it():
    stops = list(descend(lambda v: (v[0].sum(), [torch.tensor([0.5])]), [torch.ones(1)], [0.5], 0.1, 3))
    assert not stops[0].reached


def test_never_reached():
    """A linear loss has the same gradient everywhere."""
    calls = []

    def loss(v):
        calls.append(v[0].clone())
        return v[0].sum(), [torch.ones(4)]

    stops = list(descend(loss, [torch.zeros(4)], [3.0, 0.1, 1.0], 0.1, 7))
    assert [(s.eps, s.reached) for s in stops] == [(3.0, True), (1.0, False), (0.1, False)]
    assert math.isnan(stops[1].distance) and math.isnan(stops[1].steps)
    assert stops[1].gradient_norm == 2.0 and stops[1].loss == pytest.approx(-4 * 0.7), "as they were after 7 steps"
    assert len(calls) == 8


def test_a_descent_that_blows_up_ends():
    a, calls = 10.0, []

    def loss(v):
        calls.append(1)
        return a * v[0].square().sum() / 2, [a * v[0]]

    (stop,) = descend(loss, [torch.ones(1)], [0.1], 1.0, 10_000)  # |1 - lr a| = 9
    assert not stop.reached and not math.isfinite(stop.gradient_norm)
    assert len(calls) < 100


# ---- loss and gradient in batches


def test_batches_change_nothing_but_rounding(monkeypatch):
    data, f = make_data((5, 5, 4)), network_of(0, 0)
    theta = list(f.parameters())
    whole = loss_and_gradient(f, theta, data.train_images, data.train_labels)
    expected = torch.autograd.grad(F.cross_entropy(f(data.train_images), data.train_labels), theta)
    monkeypatch.setattr(module, "BATCH", 4)  # 4 + 4 + 4 + 2
    batched = loss_and_gradient(f, theta, data.train_images, data.train_labels)
    assert batched[0].item() == pytest.approx(whole[0].item(), rel=1e-12) and not batched[0].requires_grad
    for a, b, c in zip(whole[1], batched[1], expected, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=0)
        torch.testing.assert_close(b, c)


# ---- reach


def trajectory(S, j, eps, lr, max_steps, seed=0):
    """By torch.optim.SGD and flat vectors: (network, steps, distance, loss, norm) at the first point below eps."""
    f = network_of(seed, j)
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


def test_a_share_of_the_real_images_is_drawn_by_seed():
    data = make_data((20, 20, 20))
    S = gm.coreset("random", data, 1)
    quick = {**QUICK, "n_starts": 1, "data": data, "max_steps": 1}
    for seed in (0, 1):
        chosen = torch.randperm(60, generator=generator(seed, "reach real"))[:7]
        expected = F.cross_entropy(network_of(seed, 0)(data.train_images[chosen]), data.train_labels[chosen]).item()
        assert reach(S, 50.0, seed=seed, max_real=7, **quick)["real_loss"].item() == pytest.approx(
            expected, rel=1e-12
        )


def test_thresholds_met_at_the_same_step_share_its_numbers():
    data = make_data()
    table = reach(gm.coreset("random", data, 1), [90.0, 50.0], **QUICK, data=data)
    for _, rows in table.groupby("start"):
        assert (rows["steps"] == 0).all() and (rows["distance"] == 0).all()
        assert rows.drop(columns="eps").nunique().eq(1).all() and rows.notna().all(axis=None)


def test_without_data_there_is_nothing_to_measure_on_it():
    table = reach(gm.coreset("random", make_data(), 1), [50.0], **QUICK)
    assert table["reached"].all() and table[["distance", "steps", "train_loss", "gradient_norm"]].notna().all(
        axis=None
    )
    assert table[["test_accuracy", "real_loss", "real_gradient_norm"]].isna().all(axis=None)


def test_not_reached_leaves_the_last_gradient():
    data = make_data()
    S = gm.coreset("random", data, 1)
    table = reach(S, [1e-9], **{**QUICK, "n_starts": 1}, data=data, max_steps=3, lr=0.01)
    row = table.iloc[0]
    assert not row["reached"] and table["reached"].dtype == bool and table["steps"].dtype == float
    assert table[["steps", "distance", "test_accuracy", "real_loss", "real_gradient_norm"]].isna().all(axis=None)
    f = network_of(0, 0)
    theta = list(f.parameters())
    for _ in range(3):
        gradient = torch.autograd.grad(F.cross_entropy(f(S.images), S.labels), theta)
        with torch.no_grad():
            for p, g in zip(theta, gradient, strict=True):
                p -= 0.01 * g
    last = torch.autograd.grad(F.cross_entropy(f(S.images), S.labels), theta)
    assert row["gradient_norm"] == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in last)), rel=1e-9)


def test_the_real_data_itself_as_S(monkeypatch):
    """All training images, by batches; the same as the set that holds them."""
    data = make_data((4, 4, 4))
    as_set = gm.coreset("random", data, 4)
    monkeypatch.setattr(module, "BATCH", 5)
    quick = {**QUICK, "data": data, "lr": 0.1, "max_steps": 300}
    of_data, of_set = reach(data, [0.5], **quick), reach(as_set, [0.5], **quick)
    assert of_data["reached"].all() and (of_data["steps"] > 0).all()
    pd.testing.assert_frame_equal(of_data, of_set, rtol=1e-9)
    assert of_data["real_gradient_norm"].to_numpy() == pytest.approx(of_data["gradient_norm"].to_numpy(), rel=1e-9)


def test_same_seed_same_bits_and_fewer_starts_are_the_first_of_more():
    data = make_data(dtype=torch.float32)
    S = gm.coreset("random", data, 1)
    quick = {**QUICK, "data": data, "lr": 0.1, "max_steps": 100}
    three = reach(S, [0.8], **{**quick, "n_starts": 3})
    pd.testing.assert_frame_equal(reach(S, [0.8], **quick), three[:2], check_exact=True)
    assert not np.isclose(reach(S, [0.8], **quick, seed=1)["distance"], three["distance"][:2]).any()


def test_the_recipes_network_is_the_default():
    S = gm.coreset("random", make_data(), 1)
    small = dataclasses.replace(S, recipe={"width": 3, "depth": 2})
    quick = {**QUICK, "width": None, "depth": None, "max_steps": 1}
    expected = reach(S, 1e-6, **{**QUICK, "max_steps": 1})
    pd.testing.assert_frame_equal(reach(small, 1e-6, **quick), expected, check_exact=True)
    wide = reach(S, 1e-6, **{**QUICK, "width": 128, "depth": 3, "max_steps": 1})
    pd.testing.assert_frame_equal(reach(S, 1e-6, **quick), wide, check_exact=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"eps": []}, "eps=.* does not fit: give one or more positive thresholds"),
        ({"eps": [0.1, 0.0]}, "eps=.* does not fit"),
        ({"eps": [-1]}, "eps=.* does not fit"),
        ({"eps": [math.nan]}, "eps=.* does not fit"),
        ({"eps": "small"}, "eps is a str: give thresholds of the gradient's norm"),
        ({"width": -1}, "width=-1 does not fit: give a whole number of at least 1"),
        ({"seed": "a"}, "seed='a' does not fit"),
        ({"n_starts": 0}, "n_starts=0 does not fit: give a whole number of at least 1"),
        ({"max_steps": 0}, "max_steps=0 does not fit"),
        ({"max_steps": 2.5}, r"max_steps=2\.5 does not fit"),
        ({"max_real": 0}, "max_real=0 does not fit"),
        ({"lr": 0}, "lr=0 does not fit: give a positive number"),
        ({"lr": math.inf}, "lr=inf does not fit"),
        ({"network": "vit"}, "unknown network 'vit'"),
        ({"depth": 9}, "too small for a ConvNet of depth 9"),
    ],
)
def test_bad_values(change, sentence):
    S = gm.coreset("random", make_data(), 1)
    with pytest.raises(ValueError, match=sentence):
        reach(S, **{"eps": [0.1], **QUICK, **change})


def test_a_set_of_other_data_is_refused():
    S = gm.coreset("random", make_data((3, 3)), 1)
    with pytest.raises(ValueError, match=r"the set has 2 classes .* but made-up has 3"):
        reach(S, [0.1], **QUICK, data=make_data((3, 3, 3)))
    with pytest.raises(ValueError, match=r"the set has 2 classes .* but made-up has 3"):
        alignment(S, make_data((3, 3, 3)), **QUICK)
    scaled = dataclasses.replace(S, mean=(0.1,))
    with pytest.raises(ValueError, match=r"the set is normalised by mean \(0.1,\) .* bring one to the other's"):
        reach(scaled, [0.1], **QUICK, data=make_data((3, 3)))


# ---- by_eps


def test_sums_over_starts_by_hand():
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
        "starts": [3, 3], "reached": [1.0, 1 / 3], "min_distance": [1.0, 7.0],
        "distance_q05": [1.1, 7.0], "distance_q25": [1.5, 7.0], "distance_q50": [2.0, 7.0],
        "distance_q75": [2.5, 7.0], "distance_q95": [2.9, 7.0], "median_steps": [20, 99],
        "test_accuracy": [70.0, 80.0], "train_loss": [0.6, 0.1], "real_loss": [2.0, 3.0], "real_gradient_norm": [5.0, 5.0],
    }  # fmt: skip
    assert found.columns.tolist() == ["eps", *expected]
    for name, values in expected.items():
        assert found[name].tolist() == pytest.approx(values, rel=1e-12), name

    two = pd.concat([table.assign(method="MD"), table[table["eps"] == 0.1].assign(method="DC", reached=False)])
    apart = by_eps(two, by=["method"])
    assert apart[["method", "eps"]].to_numpy().tolist() == [["DC", 0.1], ["MD", 1.0], ["MD", 0.1]]
    pd.testing.assert_frame_equal(apart[1:].drop(columns="method").reset_index(drop=True), found)
    assert apart.loc[0, "reached"] == 0 and apart.loc[0, "min_distance":].isna().all(), (
        "none reached: no distance, no warning"
    )


# ---- noise


def test_noise_is_the_start_of_a_run():
    data = make_data()
    S = noise_set(data, 2, seed=4)
    assert torch.equal(S.images, initial(data, tiny_recipe(ipc=2, inner_loops=1, zeta_theta=1, seed=4)))
    assert S.labels.tolist() == [0, 0, 1, 1, 2, 2] and S.images.dtype == torch.float64
    assert S.recipe == {"method": "noise", "dataset": "made-up", "ipc": 2, "seed": 4}
    assert not torch.equal(noise_set(data, 2, seed=5).images, S.images)
    many = noise_set(
        make_data((2, 2), shape=(3, 16, 16)), 7
    ).images  # more than the classes hold, and no schedule in the paper
    assert scipy.stats.kstest(many.flatten().numpy(), "norm").pvalue > 1e-3
    with pytest.raises(ValueError, match="ipc=0 does not fit"):
        noise_set(data, 0)


# ---- rank correlation


def numbers(n, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    x, y = z + rng.normal(size=n), 0.5 * z + rng.normal(size=n)
    return tuple(np.round(v) if ties else v for v in (x, y, z))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [3, 6, 40])
def test_spearman_against_scipy(n, ties):
    x, y, _ = numbers(n, seed=2, ties=ties)
    found, expected = rank_correlation(x, y), scipy.stats.spearmanr(x, y)
    assert found.rho == pytest.approx(expected.statistic, abs=1e-12) and found.n == n
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.low <= found.rho <= found.high


@pytest.mark.parametrize("ties", [False, True])
def test_partial_correlation_against_the_closed_formula(ties):
    x, y, z = numbers(30, seed=1, ties=ties)
    xy, xz, yz = (scipy.stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    found = rank_correlation(x, y, control=z)
    assert found.rho == pytest.approx(expected, abs=1e-12)
    assert abs(expected - xy) > 0.1, "the control matters here"
    t = expected * math.sqrt(27 / (1 - expected**2))  # n - 3 degrees of freedom
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(t), 27), rel=1e-9)


def test_partial_correlation_by_hand():
    """Ranks: x 1 2 3 4, y 2 1 4 3, z 1 3 2 4. r_xy = .6, r_xz = .8, r_yz = 0: .6 / (.6 * 1) = 1."""
    found = rank_correlation([10, 20, 30, 40], [5, 1, 9, 7], control=[0.1, 0.3, 0.2, 0.4])
    assert found.rho == pytest.approx(1, abs=1e-12)


def test_the_interval_is_the_percentile_bootstraps():
    """Resample by resample with scipy; and against scipy's own bootstrap with other draws."""
    x, y, z = numbers(25, seed=3)
    found = rank_correlation(x, y, n_boot=300, seed=7)
    drawn = torch.randint(25, (300, 25), generator=generator(7, "rank correlation")).numpy()
    resampled = [scipy.stats.spearmanr(x[i], y[i]).statistic for i in drawn]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])), abs=1e-12)
    theirs = scipy.stats.bootstrap(
        (x, y), lambda a, b: scipy.stats.spearmanr(a, b).statistic, paired=True, vectorized=False, n_resamples=2000,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert rank_correlation(x, y) == rank_correlation(x, y) != rank_correlation(x, y, seed=1)
    assert (rank_correlation(x, y).low, rank_correlation(x, y).high) == pytest.approx(tuple(theirs), abs=0.05)
    partial = rank_correlation(x, y, control=z)
    assert partial.low < partial.rho < partial.high


@pytest.mark.parametrize(
    ("x", "y", "control", "note"),
    [
        ([1, 1, 1, 1], [1, 2, 3, 4], None, "x constant over the sets"),
        ([1, 2, 3, 4], [7, 7, 7, 7], None, "y constant"),
        ([2, 2, 2, 2], [7, 7, 7, 7], [1, 2, 3, 4], "x and y constant"),
        ([1, 2, 3, 4, 5], [2, 1, 3, 5, 4], [10, 20, 30, 40, 50], "nothing of x or y is left beyond the control"),
        ([1, 2, 3, 4, 5], [2, 1, 3, 5, 4], [4, 5, 3, 1, 2], "nothing of x or y is left beyond the control"),
        ([1, 2], [1, 2], None, "rho needs 3 pairs or more"),
        ([1, 2, 3], [1, 3, 2], [1, 1, 2], "rho needs 4 pairs or more"),
        ([1, math.nan, 3], [1, 3, 2], None, "1 of 3 left out, a value is missing; rho needs 3 pairs"),
        ([], [], None, "rho needs 3 pairs or more"),
    ],
)
def test_no_value_and_why(x, y, control, note):
    found = rank_correlation(x, y, control)
    assert all(math.isnan(v) for v in (found.rho, found.low, found.high, found.p)) and note in found.note
    assert note in str(found)


def test_missing_values_and_a_constant_control():
    x, y, _ = numbers(12)
    with_gap = np.insert(x, 5, math.nan), np.insert(y, 5, 3.0)
    found = rank_correlation(*with_gap)
    assert (found.rho, found.n) == (
        rank_correlation(x, y).rho,
        12,
    ) and found.note == "1 of 13 left out, a value is missing"
    plain = rank_correlation(x, y, control=[3] * 12)
    assert (
        plain.rho == pytest.approx(rank_correlation(x, y).rho, abs=1e-12) and "the control is constant" in plain.note
    )


def test_resamples_without_a_value_are_left_out():
    """Three pairs: one resample in nine holds one pair only, thrice, and has no rho. All others have 1."""
    found = rank_correlation([1, 2, 3], [1, 2, 3])
    assert (found.rho, found.low, found.high, found.p) == (1, 1, 1, 0)
    assert str(found) == "1.00 [1.00, 1.00] (n = 3)"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"x": [1, 2, 3], "y": [1, 2]}, "x, y and control must be equally long lists"),
        ({"x": [1, 2, 3], "y": [1, 2, 3], "control": [1, 2]}, "x, y and control must be equally long lists"),
        ({"x": [1, 2, 3], "y": [1, 2, 3], "n_boot": 0}, "n_boot=0 does not fit"),
    ],
)
def test_bad_pairs(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        rank_correlation(**arguments)


# ---- paths


def test_the_plane_by_hand():
    """Products of the columns: 20, 10 and 4, and no mixed ones; turned into 11 dimensions, as two tensors."""
    known = np.array([[4, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -3, 0], [0, 0, 2]], dtype=float)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(11, 3)))[0].T
    points = [[v[:6].view(2, 3), v[6:]] for v in torch.from_numpy(known @ turn)]
    xy, lengths, share = plane(points)
    assert xy == pytest.approx(np.array([[4, 0], [-2, 0], [0, -1], [0, 3], [0, 0]]), abs=1e-12), (
        "the farthest is positive"
    )
    assert lengths.tolist() == pytest.approx([4, 2, 1, 3, 2], rel=1e-12)
    assert share == pytest.approx(30 / 34, rel=1e-12)


def test_the_plane_against_numpys_svd():
    points = np.random.default_rng(1).normal(size=(7, 40)).astype(np.float32)
    xy, lengths, share = plane([[torch.from_numpy(v)] for v in points])
    u, s, _ = np.linalg.svd(points.astype(float), full_matrices=False)
    assert np.abs(xy) == pytest.approx(np.abs(u[:, :2] * s[:2]), abs=1e-10)
    assert lengths == pytest.approx(np.linalg.norm(points.astype(float), axis=1), rel=1e-10)
    assert share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), rel=1e-12)
    assert math.isnan(plane([[torch.zeros(3)], [torch.zeros(3)]])[2]), "nothing moved"


class TwoWeights(torch.nn.Module):
    """Logistic regression on the first two pixels: loss log(1 + exp(-w.u)) for the images u and -u of classes 1 and 0."""

    def __init__(self, *_):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(1, 2))

    def forward(self, x):
        z = x.flatten(1)[:, :2] @ self.w[0]
        return torch.stack([-z / 2, z / 2], 1)


def pair(u):
    """Images -u and u (class 0 and 1), 2x2 pixels of which the last two are 0, and their labels."""
    u = torch.tensor([*u, 0, 0], dtype=torch.float64).view(1, 2, 2)
    return torch.stack([-u, u]), torch.tensor([0, 1])


def test_two_straight_paths_by_hand(monkeypatch):
    """On S theta walks along u, on T along v: s = w.u follows s += lr |u|^2 sigmoid(-s), and the plane holds everything."""
    monkeypatch.setitem(networks.NETWORKS, "two", TwoWeights)
    directions = {"near": np.array([0.5, 0.2]), "T": np.array([1.2, -0.5])}
    images, labels = pair(directions["T"])
    data = Data("two points", ("a", "b"), (0.0,), (1.0,), images, labels, images, labels)
    near, _ = pair(directions["near"])
    S = SyntheticSet(images=near, labels=labels, classes=("a", "b"), mean=(0.0,), std=(1.0,), recipe={})
    lr, steps, every = 0.3, 60, 20
    walked = {"network": "two", "steps": steps, "every": every, "lr": lr, "seed": 5, "start": 2}
    table = paths({"near": S}, data, **walked, device="cpu", progress=False)
    assert table[["path", "start", "step"]].to_numpy().tolist() == [
        [p, 2, n] for p in ("near", "T") for n in (0, 20, 40, 60)
    ]
    f = networks.build("two", (1, 2, 2), 2, generator=generator(5, "reach", 2), dtype=torch.float64)
    w0, sigmoid = f.w[0].detach().numpy(), scipy.special.expit
    moved = []
    for name, u in directions.items():
        w = w0.copy()
        for n in range(steps + 1):
            if n % every == 0:
                row = table[(table["path"] == name) & (table["step"] == n)].iloc[0]
                expected = {
                    "distance": np.linalg.norm(w - w0),
                    "loss": math.log1p(math.exp(-w @ u)), "gradient_norm": np.linalg.norm(u) * sigmoid(-w @ u),
                    "loss_T": math.log1p(math.exp(-w @ directions["T"])),
                    "gradient_norm_T": np.linalg.norm(directions["T"]) * sigmoid(-w @ directions["T"]),
                    "test_accuracy": 100.0 * (w @ directions["T"] > 0), "explained": 1.0,
                }  # fmt: skip
                assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-9, abs=1e-12)
                moved.append(w - w0)
            w = w + lr * sigmoid(-w @ u) * u
    moved, xy = np.array(moved), table[["x", "y"]].to_numpy()
    assert xy @ xy.T == pytest.approx(moved @ moved.T, abs=1e-12), "turned or mirrored, no more"
    first, second = (xy**2).sum(0)
    assert first > second and (xy[:, 0] @ xy[:, 1]) == pytest.approx(0, abs=1e-12), "principal axes"


def test_paths_against_a_second_implementation():
    data = make_data((20, 20, 20), n_test=30)
    sets = {"A": gm.coreset("random", data, 1), "B": gm.coreset("random", data, 2, seed=1)}
    table = paths(sets, data, width=3, depth=2, steps=7, every=3, lr=0.1, real_batch=10, device="cpu", progress=False)
    assert table[["path", "step"]].to_numpy().tolist() == [[name, n] for name in ("A", "B", "T") for n in (0, 3, 6)]
    chosen = torch.randperm(60, generator=generator(0, "paths real"))[:10]
    real = data.train_images[chosen], data.train_labels[chosen]
    moved = []

    def look(f, x, y):
        f.zero_grad()
        loss = F.cross_entropy(f(x), y)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in f.parameters()]).norm().item()

    for name, (x, y) in {**{n: (S.images, S.labels) for n, S in sets.items()}, "T": real}.items():
        f = network_of(0, 0)
        theta0 = parameters_to_vector(f.parameters()).detach().clone()
        optimiser = torch.optim.SGD(f.parameters(), lr=0.1)
        for step in range(7):
            if step % 3 == 0:
                row = table[(table["path"] == name) & (table["step"] == step)].iloc[0]
                moved.append((parameters_to_vector(f.parameters()).detach() - theta0).numpy())
                expected = *look(f, *real), accuracy(f, data.test_images, data.test_labels), np.linalg.norm(moved[-1])
                found = row["loss_T"], row["gradient_norm_T"], row["test_accuracy"], row["distance"]
                assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
            own = look(f, x, y)
            if step % 3 == 0:
                assert (row["loss"], row["gradient_norm"]) == pytest.approx(own, rel=1e-9)
            optimiser.step()
    u, s, _ = np.linalg.svd(np.array(moved), full_matrices=False)
    xy = table[["x", "y"]].to_numpy()
    assert np.abs(xy) == pytest.approx(np.abs(u[:, :2] * s[:2]), abs=1e-9)
    assert table["explained"].unique() == pytest.approx([(s[:2] ** 2).sum() / (s**2).sum()], rel=1e-9)
    assert (table["distance"] >= np.hypot(*xy.T) - 1e-12).all() and (table["distance"] > np.hypot(*xy.T) + 1e-6).any()
    starts = table[table["step"] == 0]
    assert starts[["x", "y", "distance"]].to_numpy() == pytest.approx(0, abs=1e-12), "theta0 is the origin"
    assert starts["loss_T"].nunique() == 1, "one theta0 for all"


def test_paths_same_seed_same_bits():
    data = make_data(dtype=torch.float32)
    sets = {"A": gm.coreset("random", data, 1)}
    quick = {
        "width": 3,
        "depth": 2,
        "steps": 4,
        "every": 2,
        "lr": 0.1,
        "real_batch": 9,
        "device": "cpu",
        "progress": False,
    }
    once = paths(sets, data, **quick)
    pd.testing.assert_frame_equal(paths(sets, data, **quick), once, check_exact=True)
    for change in ({"seed": 1}, {"start": 1}):
        other = paths(sets, data, **quick, **change)
        assert not np.isclose(other["loss"], once["loss"]).any() and (other["start"] == change.get("start", 0)).all()
    at_start = reach(sets["A"], [90.0], **QUICK)["train_loss"]
    assert once["loss"][0] == at_start[0] and other["loss"][0] == at_start[1], "the starts are those of reach"
    both = paths({**sets, "all": data}, data, **quick)
    own = ["loss", "gradient_norm", "loss_T", "gradient_norm_T", "test_accuracy"]
    pd.testing.assert_frame_equal(both[both["path"] == "A"][own], once[once["path"] == "A"][own], check_exact=True)


def test_a_path_that_blows_up_ends():
    data = make_data()
    table = paths({"A": gm.coreset("random", data, 1)}, data, width=3, depth=2, steps=6, every=1, lr=1e200, device="cpu",
                  progress=False)  # fmt: skip
    assert 2 <= len(table) < 14 and np.isfinite(table["gradient_norm"]).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sets": {}}, "sets must name one set or more"),
        ({"sets": noise_set(make_data(), 1)}, "sets must name one set or more"),
        ({"sets": {"T": noise_set(make_data(), 1)}}, 'none of them "T"'),
        ({"sets": {"M": noise_set(make_data((3, 3)), 1)}}, "the set has 2 classes .* but made-up has 3"),
        ({"every": 5, "steps": 4}, "every=5 is more than steps=4"),
        ({"steps": 0}, "steps=0 does not fit"),
        ({"every": 0}, "every=0 does not fit"),
        ({"real_batch": 0}, "real_batch=0 does not fit"),
        ({"start": -1}, "start=-1 does not fit"),
        ({"lr": 0}, "lr=0 does not fit"),
        ({"network": "vit"}, "unknown network 'vit'"),
    ],
)
def test_bad_paths(change, sentence):
    given = {"sets": {"M": noise_set(make_data(), 1)}, "data": make_data(), "width": 3, "depth": 2, "progress": False}
    with pytest.raises(ValueError, match=sentence):
        paths(**{**given, **change})


def test_paths_figure_shows_paths_and_traps():
    table = pd.DataFrame(
        {
            "path": ["M", "M", "M", "T", "T", "T"], "step": [0, 5, 10] * 2, "x": [0, 3, 4, 0, 6, 8.0],
            "y": [0, 4, 3, 0, 0, 0.0], "distance": [0, 5, 5, 0, 6, 10.0], "gradient_norm": [1, 0.09, 0.05, 1, 0.5, 0.3],
        }
    )  # fmt: skip
    left, right = report.paths_figure(table, 0.1).axes
    M, trap, T, no_trap, start = left.lines
    assert M.get_xydata().tolist() == [[0, 0], [3, 4], [4, 3]] and M.get_color() == report.colour("M")
    assert T.get_xydata().tolist() == [[0, 0], [6, 0], [8, 0]] and T.get_color() == "black"
    assert trap.get_xydata().tolist() == [[3, 4]] and not len(no_trap.get_xydata()), "first below eps; T never is"
    assert start.get_xydata().tolist() == [[0, 0]]
    assert left.get_xlabel() == "first principal direction (67%)" and left.get_ylabel().endswith(
        "(13%)"
    )  # 125 and 25 of 186
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["M", "T"]
    assert right.get_yscale() == "log" and right.lines[0].get_ydata().tolist() == [1, 0.09, 0.05]
    assert right.lines[1].get_xydata().tolist() == [[5, 0.09]] and right.lines[-1].get_ydata()[0] == 0.1


# ---- alignment


def test_alignment_against_autograd():
    data = make_data((20, 20, 20))
    S = gm.coreset("random", data, 1)
    table = alignment(S, data, **{**QUICK, "n_starts": 2}, steps=5, every=2, lr=0.1, real_batch=10)
    layers = ["0.weight", "4.weight", "9.weight"]
    assert table[["start", "step", "layer"]].to_numpy().tolist() == [
        [j, s, n] for j in (0, 1) for s in (0, 2, 4) for n in layers
    ]
    chosen = torch.randperm(60, generator=generator(0, "alignment real"))[:10]
    for j in (0, 1):
        f = network_of(0, j)
        optimiser = torch.optim.SGD(f.parameters(), lr=0.1)
        for step in range(5):
            gradients, losses = {}, {}
            for name, x, y in (
                ("T", data.train_images[chosen], data.train_labels[chosen]),
                ("S", S.images, S.labels),
            ):
                optimiser.zero_grad()
                loss = F.cross_entropy(f(x), y)
                loss.backward()
                gradients[name] = {layer: f.get_parameter(layer).grad.flatten().numpy().copy() for layer in layers}
                losses[name] = loss.item()
            optimiser.step()  # the gradient of S came last
            for row in table[(table["start"] == j) & (table["step"] == step)].itertuples():
                A, B = gradients["S"][row.layer], gradients["T"][row.layer]
                norms = np.linalg.norm(A), np.linalg.norm(B)
                expected = (A @ B / norms[0] / norms[1], norms[0] / norms[1], *norms, losses["S"], losses["T"])
                found = (row.cosine, row.ratio, row.norm_S, row.norm_T, row.loss_S, row.loss_T)
                assert found == pytest.approx(expected, rel=1e-9)


def test_a_set_that_is_the_data_is_aligned_with_it():
    data = make_data((4, 4, 4))
    table = alignment(data, data, **QUICK, steps=3, every=3, real_batch=500)
    assert table["step"].unique().tolist() == [0, 3]
    for name in ("cosine", "ratio"):
        assert table[name].to_numpy() == pytest.approx(1, rel=1e-9)
    assert table["loss_S"].to_numpy() == pytest.approx(table["loss_T"].to_numpy(), rel=1e-9)


def test_alignment_starts_where_reach_does():
    data = make_data()
    S = gm.coreset("random", data, 1)
    first = alignment(S, data, **QUICK, steps=1, every=1)
    losses = reach(S, [90.0], **QUICK)["train_loss"]
    assert first[first["step"] == 0].groupby("start")["loss_S"].first().tolist() == losses.tolist()


@pytest.mark.parametrize("change", [{"steps": 0}, {"every": 0}, {"n_starts": True}, {"real_batch": 0}, {"lr": -1}])
def test_bad_alignment(change):
    data = make_data()
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}=.* does not fit"):
        alignment(gm.coreset("random", data, 1), data, **{**QUICK, **change})


# ---- networks with running statistics


def test_looking_at_the_real_data_does_not_touch_running_statistics(monkeypatch):
    """With data or without, the same descent: the real images must not enter a BatchNorm's averages."""

    def with_batchnorm(channels, size, n_classes, **_):
        last = torch.nn.Linear(2 * (size - 2) ** 2, n_classes)
        return torch.nn.Sequential(torch.nn.Conv2d(channels, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), last)

    monkeypatch.setitem(networks.NETWORKS, "bn", with_batchnorm)
    seen = []
    build = networks.build
    monkeypatch.setattr(networks, "build", lambda *a, **k: seen.append(build(*a, **k)) or seen[-1])
    data = make_data()
    S = gm.coreset("random", data, 2)
    for given in (None, data):
        reach(S, [90.0, 0.5], **{**QUICK, "n_starts": 1}, network="bn", data=given, lr=0.1, max_steps=50)
    without, looked = seen[1], seen[3]  # each call builds one network to check, then one per start
    assert torch.equal(without[1].running_mean, looked[1].running_mean) and without[1].num_batches_tracked > 1
    aligned = alignment(S, data, **QUICK, network="bn", steps=2, every=1)
    last = reach(S, [1e-9], **QUICK, network="bn", max_steps=2)["train_loss"]
    assert aligned[aligned["step"] == 2].groupby("start")["loss_S"].first().tolist() == last.tolist()
