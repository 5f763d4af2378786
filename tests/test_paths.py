"""Training on S: paths against a closed form and a second implementation, gradients of S and T against autograd."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from conftest import make_data
from messages import refuses
from test_reach import start_of_reach
from torch.nn.utils import parameters_to_vector

import gmlib as gm
import gmreport as report
from gmlib import Data, SyntheticSet, networks
from gmlib.analysis.training import alignment, paths, plane
from gmlib.evaluation import accuracy
from gmlib.maxmin import noise_set, reach
from gmlib.runtime import generator

SMALL = {"width": 3, "depth": 2, "device": "cpu", "progress": False}


# ---- paths -------------------------------------------------------------------------------------------------


def test_the_plane_by_hand():
    """Orthogonal columns with squared lengths 20, 10 and 4, rotated into 11 dimensions and split into two tensors."""
    known = np.array([[4, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -3, 0], [0, 0, 2]], dtype=float)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(11, 3)))[0].T
    points = [[v[:6].view(2, 3), v[6:]] for v in torch.from_numpy(known @ turn)]
    xy, lengths, share = plane(points)
    expected = np.array([[4, 0], [-2, 0], [0, -1], [0, 3], [0, 0]])  # the farthest point of each axis is positive
    assert xy == pytest.approx(expected, abs=1e-12)
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
    """Logistic regression on two pixels: loss log(1 + exp(-w.u)) for the images u and -u of classes 1 and 0."""

    def __init__(self, *_):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(1, 2))

    def forward(self, x):
        z = x.flatten(1)[:, :2] @ self.w[0]
        return torch.stack([-z / 2, z / 2], 1)


def pair(u):
    """Images -u and u (class 0 and 1), 2x2 pixels with the last two 0, and their labels."""
    u = torch.tensor([*u, 0, 0], dtype=torch.float64).view(1, 2, 2)
    return torch.stack([-u, u]), torch.tensor([0, 1])


def test_two_straight_paths_by_hand(monkeypatch):
    """theta moves along u on S and along v on T: s = w.u follows s += lr |u|^2 sigmoid(-s), all in one plane."""
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
                    "loss": math.log1p(math.exp(-w @ u)),
                    "gradient_norm": np.linalg.norm(u) * sigmoid(-w @ u),
                    "loss_T": math.log1p(math.exp(-w @ directions["T"])),
                    "gradient_norm_T": np.linalg.norm(directions["T"]) * sigmoid(-w @ directions["T"]),
                    "test_accuracy": 100.0 * (w @ directions["T"] > 0),
                    "explained": 1.0,
                }
                assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-9, abs=1e-12)
                moved.append(w - w0)
            w = w + lr * sigmoid(-w @ u) * u
    moved, xy = np.array(moved), table[["x", "y"]].to_numpy()
    assert xy @ xy.T == pytest.approx(moved @ moved.T, abs=1e-12), "rotated or mirrored"
    first, second = (xy**2).sum(0)
    assert first > second and (xy[:, 0] @ xy[:, 1]) == pytest.approx(0, abs=1e-12), "principal axes"


def test_paths_against_a_second_implementation():
    data = make_data((20, 20, 20), n_test=30)
    sets = {"A": gm.coreset("random", data, 1), "B": gm.coreset("random", data, 2, seed=1)}
    table = paths(sets, data, **SMALL, steps=7, every=3, lr=0.1, real_batch=10)
    assert table[["path", "step"]].to_numpy().tolist() == [[name, n] for name in ("A", "B", "T") for n in (0, 3, 6)]
    chosen = torch.randperm(60, generator=generator(0, "paths real"))[:10]
    real = data.train_images[chosen], data.train_labels[chosen]
    moved = []

    def loss_and_norm(f, x, y):
        f.zero_grad()
        loss = F.cross_entropy(f(x), y)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in f.parameters()]).norm().item()

    for name, (x, y) in {**{n: (S.images, S.labels) for n, S in sets.items()}, "T": real}.items():
        f = start_of_reach(0)
        theta0 = parameters_to_vector(f.parameters()).detach().clone()
        optimiser = torch.optim.SGD(f.parameters(), lr=0.1)
        for step in range(7):
            if step % 3 == 0:
                row = table[(table["path"] == name) & (table["step"] == step)].iloc[0]
                moved.append((parameters_to_vector(f.parameters()).detach() - theta0).numpy())
                on_T = loss_and_norm(f, *real)
                expected = *on_T, accuracy(f, data.test_images, data.test_labels), np.linalg.norm(moved[-1])
                found = row["loss_T"], row["gradient_norm_T"], row["test_accuracy"], row["distance"]
                assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
            own = loss_and_norm(f, x, y)
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


def test_the_same_seed_gives_the_same_paths_bit_for_bit():
    data = make_data(dtype=torch.float32)
    sets = {"A": gm.coreset("random", data, 1)}
    quick = {**SMALL, "steps": 4, "every": 2, "lr": 0.1, "real_batch": 9}
    once = paths(sets, data, **quick)
    pd.testing.assert_frame_equal(paths(sets, data, **quick), once, check_exact=True)
    for change in ({"seed": 1}, {"start": 1}):
        other = paths(sets, data, **quick, **change)
        assert not np.isclose(other["loss"], once["loss"]).any() and (other["start"] == change.get("start", 0)).all()
    at_start = reach(sets["A"], [90.0], n_starts=2, **SMALL)["train_loss"]
    assert once["loss"][0] == at_start[0] and other["loss"][0] == at_start[1], "the starts are those of reach"
    both = paths({**sets, "all": data}, data, **quick)
    own = ["loss", "gradient_norm", "loss_T", "gradient_norm_T", "test_accuracy"]
    pd.testing.assert_frame_equal(both[both["path"] == "A"][own], once[once["path"] == "A"][own], check_exact=True)


def test_a_path_that_diverges_ends_early():
    data = make_data()
    table = paths({"A": gm.coreset("random", data, 1)}, data, **SMALL, steps=6, every=1, lr=1e200)
    assert 2 <= len(table) < 14 and np.isfinite(table["gradient_norm"]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sets": {}}, ["one set or more"]),
        ({"sets": noise_set(make_data(), 1)}, ["one set or more"]),
        ({"sets": {"T": noise_set(make_data(), 1)}}, ['not "T"']),
        ({"sets": {"M": noise_set(make_data((3, 3)), 1)}}, ["lacks", "'2'"]),
        ({"every": 5, "steps": 4}, ["every=5", "steps=4"]),
        ({"steps": 0}, ["steps=0"]),
        ({"every": 0}, ["every=0"]),
        ({"real_batch": 0}, ["real_batch=0"]),
        ({"start": -1}, ["start=-1"]),
        ({"lr": 0}, ["lr=0"]),
        ({"network": "vit"}, ["unknown network 'vit'"]),
    ],
)
def test_bad_values_of_paths_are_refused(change, words):
    given = {"sets": {"M": noise_set(make_data(), 1)}, "data": make_data(), **SMALL}
    with refuses(ValueError, *words):
        paths(**{**given, **change})


def test_paths_figure_shows_paths_and_traps():
    table = pd.DataFrame(
        {
            "path": ["M", "M", "M", "T", "T", "T"],
            "step": [0, 5, 10] * 2,
            "x": [0, 3, 4, 0, 6, 8.0],
            "y": [0, 4, 3, 0, 0, 0.0],
            "distance": [0, 5, 5, 0, 6, 10.0],
            "gradient_norm": [1, 0.09, 0.05, 1, 0.5, 0.3],
        }
    )
    panels = report.paths_figure(table, 0.1)
    left, right = panels.axes
    M, trap, T, no_trap, start = left.lines
    assert M.get_xydata().tolist() == [[0, 0], [3, 4], [4, 3]] and M.get_color() == report.colour("M")
    assert T.get_xydata().tolist() == [[0, 0], [6, 0], [8, 0]] and T.get_color() == report.style.INK
    assert trap.get_xydata().tolist() == [[3, 4]] and not len(no_trap.get_xydata()), (
        "M has a trap at its first point below eps, T has none"
    )
    assert start.get_xydata().tolist() == [[0, 0]]
    assert "(67%)" in left.get_xlabel() and "(13%)" in left.get_ylabel(), "125 and 25 of 186"
    assert [words for words, *_ in panels.legend] == ["M", "T"]
    assert right.get_yscale() == "log" and right.lines[0].get_ydata().tolist() == [1, 0.09, 0.05]
    assert right.lines[1].get_xydata().tolist() == [[5, 0.09]] and right.lines[-1].get_ydata()[0] == 0.1


# ---- alignment ---------------------------------------------------------------------------------------------


def test_alignment_against_autograd():
    data = make_data((20, 20, 20))
    S = gm.coreset("random", data, 1)
    table = alignment(S, data, **SMALL, n_starts=2, steps=5, every=2, lr=0.1, real_batch=10)
    layers = ["0.weight", "4.weight", "9.weight"]
    assert table[["start", "step", "layer"]].to_numpy().tolist() == [
        [j, s, n] for j in (0, 1) for s in (0, 2, 4) for n in layers
    ]
    chosen = torch.randperm(60, generator=generator(0, "alignment real"))[:10]
    for j in (0, 1):
        f = start_of_reach(j)
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


def test_data_as_S_is_aligned_with_itself():
    data = make_data((4, 4, 4))
    table = alignment(data, data, **SMALL, n_starts=2, steps=3, every=3, real_batch=500)
    assert table["step"].unique().tolist() == [0, 3]
    for name in ("cosine", "ratio"):
        assert table[name].to_numpy() == pytest.approx(1, rel=1e-9)
    assert table["loss_S"].to_numpy() == pytest.approx(table["loss_T"].to_numpy(), rel=1e-9)


def test_alignment_starts_where_reach_does():
    data = make_data()
    S = gm.coreset("random", data, 1)
    first = alignment(S, data, **SMALL, n_starts=2, steps=1, every=1)
    losses = reach(S, [90.0], **SMALL, n_starts=2)["train_loss"]
    assert first[first["step"] == 0].groupby("start")["loss_S"].first().tolist() == losses.tolist()


@pytest.mark.parametrize("change", [{"steps": 0}, {"every": 0}, {"n_starts": True}, {"real_batch": 0}, {"lr": -1}])
def test_bad_values_of_alignment_are_refused(change):
    data = make_data()
    ((name, value),) = change.items()
    with refuses(ValueError, f"{name}={value}"):
        alignment(gm.coreset("random", data, 1), data, **{**SMALL, **change})


def test_alignment_with_other_data_is_refused():
    with refuses(ValueError, "lacks", "'2'"):
        alignment(gm.coreset("random", make_data((3, 3)), 1), make_data((3, 3, 3)), **SMALL)


# ---- BatchNorm ---------------------------------------------------------------------------------------------


def test_measuring_on_real_images_does_not_change_running_statistics(monkeypatch):
    """The descent is the same with and without data, since real images do not enter the averages of BatchNorm."""

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
        reach(S, [90.0, 0.5], **SMALL, n_starts=1, network="bn", data=given, lr=0.1, max_steps=50)
    without, measured = seen[1], seen[3]  # each call builds one network to check, then one per start
    assert torch.equal(without[1].running_mean, measured[1].running_mean) and without[1].num_batches_tracked > 1
    aligned = alignment(S, data, **SMALL, n_starts=2, network="bn", steps=2, every=1)
    last = reach(S, [1e-9], **SMALL, n_starts=2, network="bn", max_steps=2)["train_loss"]
    assert aligned[aligned["step"] == 2].groupby("start")["loss_S"].first().tolist() == last.tolist()
