"""Section 5's max-min hypothesis: how far from its start does training on S come to rest? (Eq. 13-15; Section 3.2)

    max_S min_{theta, theta0} ||theta - theta0||    s.t.    ||grad_theta L(S, theta)|| < eps,    theta0 ~ P_theta0

A point below eps is a trap: gradient descent cannot leave it. `reach` measures the inner minimum for a given S over random
starts, `by_eps` sums the starts up, and `rank_correlation` asks what the distance predicts over many sets. For Section 3.2,
`paths` measures Figure 2, training on S and on T from one theta0, and `alignment` follows the gradients of S and of T, layer by
layer, while training on S ("why magnitude matters").

Starts run one after another. Batching eight of them with torch.func.vmap was measured on 8x8 digits (ConvNet-2 of width 32,
one CPU core): 2.9 ms per step and start against 3.0 at 1 image per class, 18 against 10 at 10. It does not pay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from scipy.stats import t as student_t
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from . import networks, where
from .condense import check, class_weights, draw, fresh_network, initial, match, move, sample, streams_of
from .data import Data, SyntheticSet, check_pair
from .evaluate import accuracy
from .gradients import products
from .memory import Memory
from .recipe import OutOfTime, Recipe, check_number, device_of, generator, late, progress_bar
from .what import union

BATCH = 1024  # images in one backward pass: bounds memory, changes results by rounding only

Gradient = Sequence[Tensor]  # one tensor per parameter
LossAndGradient = Callable[[Sequence[Tensor]], tuple[Tensor, Gradient]]


# ---- gradient descent until the gradient is small ----------------------------------------------------------


def walk(
    loss_and_gradient: LossAndGradient, theta: Sequence[Tensor], lr: float, steps: int
) -> Iterator[tuple[int, Tensor, Gradient]]:
    """Move theta in place by theta -= lr * grad L(theta), and yield (step, L, grad L) at each theta, step = 0 .. steps.

    loss_and_gradient: theta -> (L, grad L), a scalar and one tensor per tensor of theta.
    """
    values = [p.detach() for p in theta]  # the same memory, out of autograd's sight
    for step in range(steps + 1):
        loss, gradient = loss_and_gradient(theta)
        yield step, loss, gradient
        if step < steps:
            torch._foreach_add_(values, list(gradient), alpha=-lr)


class Stop(NamedTuple):
    """Where a descent first met ||grad L|| < eps; where it never did, its last loss and gradient, and NaN otherwise."""

    eps: float
    reached: bool
    steps: float
    distance: float  # ||theta - theta0||_2 over all parameters
    loss: float
    gradient_norm: float


def descend(
    loss_and_gradient: LossAndGradient, theta: Sequence[Tensor], eps: Sequence[float], lr: float, max_steps: int
) -> Iterator[Stop]:
    """`walk` until the gradient is small: yield one `Stop` for each threshold, the largest first.

    One trajectory serves all thresholds: each `Stop` is yielded while theta lies at its point, so that the caller can measure
    more there. Without momentum, since Eq. 14's point is one that plain gradient descent cannot leave. Ends early once the last
    threshold is met or the gradient is no longer finite; thresholds not met by then come last, with reached=False.
    """
    theta0 = [p.detach().clone() for p in theta]
    waiting = sorted({float(e) for e in eps}, reverse=True)
    for steps, loss, gradient in walk(loss_and_gradient, theta, lr, max_steps):
        norm = get_total_norm(gradient).item()
        while waiting and norm < waiting[0]:  # ||grad_theta L(S, theta)|| < eps, Eq. 14
            distance = get_total_norm(_displacement(theta, theta0)).item()
            yield Stop(waiting.pop(0), True, steps, distance, float(loss), norm)
        if not waiting or not math.isfinite(norm):
            break
    for e in waiting:
        yield Stop(e, False, math.nan, math.nan, float(loss), norm)


def loss_and_gradient(network: nn.Module, theta: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Gradient]:
    """Mean cross-entropy over all of x (n, channels, height, width) with labels y (n,), in nats, and its gradient.

    Gathered over batches of `BATCH` images, so memory does not grow with n.
    """
    if len(y) <= BATCH:
        loss = F.cross_entropy(network(x), y)
        return loss.detach(), torch.autograd.grad(loss, theta)
    total, gradient = x.new_zeros(()), [torch.zeros_like(p) for p in theta]
    for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        loss = F.cross_entropy(network(part), labels, reduction="sum") / len(y)
        total += loss.detach()
        torch._foreach_add_(gradient, torch.autograd.grad(loss, theta))
    return total, gradient


# ---- Eq. 13 for one set ------------------------------------------------------------------------------------


@products("float32")
def reach(
    S: SyntheticSet | Data,
    eps: Sequence[float],
    n_starts: int = 64,
    seed: int = 0,
    *,
    data: Data | None = None,
    network: str = "convnet",
    width: int | None = None,
    depth: int | None = None,
    lr: float = 0.01,
    max_steps: int = 2000,
    max_real: int = 4096,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Train on S from `n_starts` random theta0 by full-batch gradient descent; say where ||grad L(S, theta)|| < eps first.

    S: a synthetic set, or a Data for its own training images (every step then passes over all of them).
    eps: thresholds of the gradient's norm over all parameters, in any order; one trajectory serves all.
    data: the real data T, to measure test accuracy and T's own loss and gradient at each point.
    width, depth: None takes those S was condensed with, else 128 and 3. Coresets and noise carry none: give both to compare.
    max_steps: the default at lr 0.01 goes about as far (lr x steps, momentum counted) as the 300 epochs of phase 2.
    max_real: at most so many training images, drawn by `seed`, stand for T in real_loss and real_gradient_norm.

    Returns one row per start and threshold, the largest first: start, eps, reached, steps, distance (||theta - theta0||_2 over
    all parameters), train_loss (nats), gradient_norm, test_accuracy (percent), real_loss, real_gradient_norm. Without data
    the last three are NaN. Where eps was not reached: reached False, train_loss and gradient_norm as they were last, the
    others NaN. The same seed gives the same starts for every S, and the same bits on one machine.
    Raises ValueError, before any work, for an S that is not of `data`, no thresholds, or numbers out of range.
    Source: Eq. 13-15, Section 5, for a given S.
    """
    if not isinstance(eps, (int, float, Sequence, np.ndarray)) or isinstance(eps, str):
        raise ValueError(f"eps is a {type(eps).__name__}: give thresholds of the gradient's norm, and the data as data=")
    eps = np.atleast_1d(np.asarray(eps, dtype=float)).ravel().tolist()
    if not eps or not all(0 < e < math.inf for e in eps):
        raise ValueError(f"eps={eps!r} does not fit: give one or more positive thresholds of the gradient's norm")
    _check_numbers(lr, n_starts=n_starts, max_steps=max_steps, max_real=max_real)
    check_pair(S, data)
    device, x, y, start = _setting(S, network, width, depth, seed, device)
    if data is not None:
        x_T, y_T = (v.to(device) for v in draw(data, max_real, generator(seed, "reach real")))
        x_T, x_test, y_test = x_T.to(x.dtype), data.test_images.to(device, x.dtype), data.test_labels.to(device)

    rows = []
    bar = progress_bar("reach", n_starts, "start", progress)
    for j in range(n_starts):
        if late(deadline):
            bar.close()
            raise OutOfTime(f"out of time after {j} of {n_starts} starts, of which none is kept: run again with more time")
        f = start(j)
        theta, there, measured_at = list(f.parameters()), {}, None
        for stop in descend(lambda theta, f=f: loss_and_gradient(f, theta, x, y), theta, eps, lr, max_steps):
            if not stop.reached or data is None:
                there = dict.fromkeys(("test_accuracy", "real_loss", "real_gradient_norm"), math.nan)
            elif stop.steps != measured_at:  # thresholds met at the same step share its measurements
                loss_T, gT = _real(f, theta, x_T, y_T)
                there = {
                    "test_accuracy": accuracy(f, x_test, y_test),
                    "real_loss": loss_T.item(),
                    "real_gradient_norm": get_total_norm(gT).item(),
                }
                measured_at = stop.steps
            rows.append({
                "start": j, "eps": stop.eps, "reached": stop.reached, "steps": stop.steps, "distance": stop.distance,
                "train_loss": stop.loss, "gradient_norm": stop.gradient_norm, **there,
            })  # fmt: skip
        bar.update()
    bar.close()
    return pd.DataFrame(rows).astype({"steps": float})


QUANTILES = (5, 25, 50, 75, 95)  # percent
MEANS = ("test_accuracy", "train_loss", "real_loss", "real_gradient_norm")


def by_eps(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """`reach`'s rows summed up over starts: one row per threshold, the largest first.

    by: further columns that tell sets apart ("method", "set"), where tables of several sets were put together.

    Returns starts (how many), reached (their share, 0 to 1), min_distance (Eq. 13's inner minimum over these starts),
    distance_q05 .. distance_q95, median_steps, and the means test_accuracy, train_loss, real_loss, real_gradient_norm. All but
    the first two are over the starts that reached eps, NaN where none did: read `reached` before comparing sets.
    """
    keys = [*by, "eps"]
    measured = table[["distance", "steps", *MEANS]].where(table["reached"])  # elsewhere NaN, which the sums leave out
    groups = measured.groupby([table[key] for key in keys])
    asked = table.groupby(keys)["reached"]
    parts = {"starts": asked.size(), "reached": asked.mean(), "min_distance": groups["distance"].min()}
    parts |= {f"distance_q{q:02d}": groups["distance"].quantile(q / 100) for q in QUANTILES}
    parts |= {"median_steps": groups["steps"].median()} | {name: groups[name].mean() for name in MEANS}
    largest_last = [key != "eps" for key in keys]
    return pd.DataFrame(parts).reset_index().sort_values(keys, ascending=largest_last, ignore_index=True)


def noise_set(data: Data, ipc: int, seed: int = 0) -> SyntheticSet:
    """A control: S as it is at k = 0, N(0, 1) in normalised pixels. The images a run of this `seed` starts from (line 1)."""
    images = initial(data, Recipe(dataset=data.name, ipc=ipc, inner_loops=1, zeta_theta=1, init="noise", seed=seed))
    return SyntheticSet(
        images=images,
        labels=torch.arange(data.n_classes, device=images.device).repeat_interleave(ipc),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        recipe={"method": "noise", "dataset": data.name, "ipc": ipc, "seed": seed},
    )


# ---- what does the distance predict, over many sets? -------------------------------------------------------


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho, or the partial one given a control, with a 95% bootstrap interval; NaN where it has no value."""

    rho: float
    low: float
    high: float
    n: int  # pairs used
    p: float  # two-sided, t approximation: rough for few pairs
    note: str = ""  # what to know before reading it; why rho is NaN

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"{self.rho:.2f} [{self.low:.2f}, {self.high:.2f}] (n = {self.n}{note})"


def rank_correlation(
    x: Sequence[float], y: Sequence[float], control: Sequence[float] | None = None, n_boot: int = 2000, seed: int = 0
) -> RankCorrelation:
    """Do x and y order the sets alike? Spearman's rho, with a percentile 95% interval from resampling the sets.

    x, y, control: (n,), one number per set. control: the partial correlation, of what is left of the ranks of x and y after
    linear regression on the ranks of `control`: does the distance predict accuracy beyond what the training loss predicts?
    Ties share their mean rank. Pairs with a NaN are left out. Ranks are taken anew in each resample; resamples in which rho has
    no value are left out. rho is NaN, with a note, for fewer than 3 pairs (4 with a control), for a constant x or y, and where
    the control's ranks leave nothing of either.
    Raises ValueError for inputs of different lengths or n_boot < 1.
    """
    columns = [np.asarray(v, dtype=float) for v in (x, y, control) if v is not None]
    if any(v.ndim != 1 or len(v) != len(columns[0]) for v in columns):
        raise ValueError(f"x, y and control must be equally long lists, not of shapes {[v.shape for v in columns]}")
    check_number("n_boot", n_boot, least=1, whole=True)
    values = np.stack(columns)  # (2 or 3, n)
    kept = values[:, ~np.isnan(values).any(0)]
    n, fewest = kept.shape[1], len(kept) + 1
    notes = [f"{values.shape[1] - n} of {values.shape[1]} left out, a value is missing"] if n < values.shape[1] else []
    why = ""
    if n < fewest:
        why = f"rho needs {fewest} pairs or more"
    else:
        constant = [name for name, v in zip(("x", "y", "the control"), kept, strict=False) if (v == v[0]).all()]
        rho = float(_spearman(kept))
        if math.isnan(rho):
            blamed = [name for name in constant if name != "the control"]
            why = f"{' and '.join(blamed)} constant over the sets" if blamed else "nothing of x or y is left beyond the control"
        elif constant:
            notes.append("the control is constant and takes nothing away")
    if why:
        return RankCorrelation(math.nan, math.nan, math.nan, n, math.nan, "; ".join([*notes, why]))
    drawn = torch.randint(n, (n_boot, n), generator=generator(seed, "rank correlation")).numpy()
    resampled = _spearman(kept[:, drawn])
    low, high = np.percentile(resampled[~np.isnan(resampled)], [2.5, 97.5]) if (~np.isnan(resampled)).any() else (math.nan,) * 2
    df = n - len(kept)  # n - 2, one less with a control
    p = 2 * student_t.sf(abs(rho) * math.sqrt(df / ((1 - rho) * (1 + rho))), df) if abs(rho) < 1 else 0.0
    return RankCorrelation(rho, float(low), float(high), n, float(p), "; ".join(notes))


def _spearman(values: np.ndarray) -> np.ndarray:
    """(2 or 3, ..., n): x, y and perhaps a control -> (...) rho, NaN where x or y has no variation of its own."""
    ranks = rankdata(values, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    x, y, *z = ranks
    varied = (x**2).sum(-1), (y**2).sum(-1)
    if z:
        zz = (z[0] ** 2).sum(-1, keepdims=True)
        z = z[0] / np.sqrt(np.where(zz > 0, zz, 1))  # unit length; zero where constant, which takes nothing away
        x, y = (v - z * (v * z).sum(-1, keepdims=True) for v in (x, y))
    xx, yy = (x**2).sum(-1), (y**2).sum(-1)
    # Below this share of the ranks' variation, what the control leaves is rounding.
    known = (xx > 1e-12 * varied[0]) & (yy > 1e-12 * varied[1])
    rho = (x * y).sum(-1) / np.sqrt(np.where(known, xx * yy, 1))
    return np.where(known, rho.clip(-1, 1), math.nan)


# ---- Figure 2: training on S and on T ----------------------------------------------------------------------


@products("float32")
def paths(
    sets: Mapping[str, SyntheticSet | Data],
    data: Data,
    *,
    network: str = "convnet",
    width: int | None = None,
    depth: int | None = None,
    steps: int = 1000,
    every: int = 50,
    lr: float = 0.01,
    seed: int = 0,
    start: int = 0,
    real_batch: int = 256,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train on each S and on T from one theta0, and lay all paths into the plane through theta0 that fits them best.

    sets: {name of the path: S}. T is `real_batch` training images of any class (all where there are fewer), drawn once by
    `seed`; its path is called "T". theta0 is that of `reach`'s start number `start` for the same seed.
    width, depth: None takes those the first set was condensed with, else 128 and 3. Coresets and noise carry none: give both.

    Every path takes `steps` steps of full-batch gradient descent and is noted at 0, every, 2 * every, ...; it ends early where
    its gradient is no longer finite. All noted theta are held in memory. The plane's axes are the first two principal
    directions of all noted theta - theta0, not centred; along either the farthest point lies on the positive side.

    Returns one row per path and noted step, T's path last: path, start, step, x, y (in the plane, theta0 at the origin),
    distance (||theta - theta0||_2 over all parameters, in the unit of x and y), loss, gradient_norm (on the path's own set),
    loss_T, gradient_norm_T (on T), test_accuracy (percent), explained (share of the squared distances of all noted points that
    lies in the plane, 0 to 1, the same in every row). Losses are in nats. The same seed gives the same bits on one machine.
    Raises ValueError, before any work, for no sets, a set named "T" or not of `data`, and numbers out of range.
    Source: Figure 2, Section 3.2; a path is trapped where Eq. 14 holds on its own set.
    """
    if not isinstance(sets, Mapping) or not sets or "T" in sets:
        raise ValueError('sets must name one set or more, as {"M": S}, and none of them "T", the path on the real images')
    _check_numbers(lr, steps=steps, every=every, real_batch=real_batch)
    check_number("start", start, least=0, whole=True)
    if every > steps:
        raise ValueError(f"every={every} is more than steps={steps}: no path would be noted after its start")
    for S in sets.values():
        check_pair(S, data)
    device, first, _, theta0_of = _setting(next(iter(sets.values())), network, width, depth, seed, device)
    images = {name: _images(S) for name, S in sets.items()}
    images["T"] = draw(data, real_batch, generator(seed, "paths real"))
    images = {name: (x.to(device, first.dtype), y.to(device)) for name, (x, y) in images.items()}
    x_test, y_test = data.test_images.to(device, first.dtype), data.test_labels.to(device)

    rows, points = [], []
    bar = progress_bar("paths", len(images), "path", progress)
    for name, (x, y) in images.items():
        f = theta0_of(start)
        theta = list(f.parameters())
        theta0 = [p.detach().clone() for p in theta]
        for step, loss, gradient in walk(lambda theta, f=f, x=x, y=y: loss_and_gradient(f, theta, x, y), theta, lr, steps):
            if step % every:
                continue
            norm = get_total_norm(gradient).item()
            if not math.isfinite(norm):
                break
            loss_T, gT = _real(f, theta, *images["T"])
            points.append(_displacement(theta, theta0))
            rows.append({
                "path": name, "start": start, "step": step, "loss": loss.item(), "gradient_norm": norm,
                "loss_T": loss_T.item(), "gradient_norm_T": get_total_norm(gT).item(),
                "test_accuracy": accuracy(f, x_test, y_test),
            })  # fmt: skip
        bar.update()
    bar.close()
    xy, distances, explained = plane(points)
    table = pd.DataFrame(rows).assign(explained=explained)
    for i, (name, values) in enumerate({"x": xy[:, 0], "y": xy[:, 1], "distance": distances}.items()):
        table.insert(3 + i, name, values)
    return table


def plane(points: Sequence[Sequence[Tensor]]) -> tuple[np.ndarray, np.ndarray, float]:
    """The plane through the origin that holds most of the points' squared length: their first two principal directions.

    points: n >= 2 points, each a list of tensors of the same shapes. Parameters are many and points few, so the directions come
    from the points' products with each other, an n x n matrix, in float64.

    Returns xy (n, 2), the coordinates in the plane, the largest of each axis positive; lengths (n,) in the whole space; and the
    share of the squared lengths that lies in the plane, 0 to 1, NaN where all points are the origin.
    """
    tensors = (torch.stack(same).flatten(1).cpu().double() for same in zip(*points, strict=True))
    gram = sum(A @ A.T for A in tensors)
    squares, directions = torch.linalg.eigh(gram)  # ascending: points = directions * sqrt(squares) in principal axes
    squares, directions = squares[-2:].flip(0).clamp(min=0), directions[:, -2:].flip(1)
    xy = directions * squares.sqrt()
    xy = torch.where(xy.amax(0) < -xy.amin(0), -xy, xy)
    lengths = gram.diagonal().sqrt()
    return xy.numpy(), lengths.numpy(), (squares.sum() / gram.trace()).item()


# ---- why magnitude matters ---------------------------------------------------------------------------------


@products("float32")
def alignment(
    S: SyntheticSet | Data,
    data: Data,
    *,
    network: str = "convnet",
    width: int | None = None,
    depth: int | None = None,
    steps: int = 1000,
    every: int = 50,
    lr: float = 0.01,
    seed: int = 0,
    n_starts: int = 1,
    real_batch: int = 256,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Along training on S by full-batch gradient descent: the gradients of S and of T, compared layer by layer.

    T is `real_batch` training images of any class (all where there are fewer), drawn once by `seed`. Starts are those of
    `reach` for the same seed. width, depth: None takes those S was condensed with, else 128 and 3.

    Returns one row per start, step (0, every, 2 * every, ... up to steps) and matched layer: start, step, layer (the weight's
    name), cosine (of the layer's whole gradients), ratio (norm_S / norm_T), norm_S, norm_T, loss_S, loss_T (nats, of all
    layers). cosine is NaN where a gradient is zero.
    Raises ValueError, before any work, for an S that is not of `data` or numbers out of range.
    Source: Section 3.2: no angle helps where ||grad L(S, theta)|| has become small.
    """
    _check_numbers(lr, steps=steps, every=every, n_starts=n_starts, real_batch=real_batch)
    check_pair(S, data)
    device, x, y, start = _setting(S, network, width, depth, seed, device)
    x_T, y_T = (v.to(device) for v in draw(data, real_batch, generator(seed, "alignment real")))
    x_T = x_T.to(x.dtype)

    rows = []
    bar = progress_bar("alignment", n_starts, "start", progress)
    for j in range(n_starts):
        f = start(j)
        names, theta = zip(*f.named_parameters(), strict=True)
        matched = {name for name, _ in networks.matched(f)}
        for step, loss_S, gS in walk(lambda theta, f=f: loss_and_gradient(f, theta, x, y), theta, lr, steps):
            if step % every == 0:
                loss_T, gT = _real(f, theta, x_T, y_T)
                for layer, A, B in zip(names, gS, gT, strict=True):
                    if layer not in matched:
                        continue
                    norm_S, norm_T = A.norm(), B.norm()
                    rows.append({
                        "start": j, "step": step, "layer": layer,
                        "cosine": ((A / norm_S) * (B / norm_T)).sum().item(), "ratio": (norm_S / norm_T).item(),
                        "norm_S": norm_S.item(), "norm_T": norm_T.item(), "loss_S": loss_S.item(), "loss_T": loss_T.item(),
                    })  # fmt: skip
        bar.update()
    bar.close()
    return pd.DataFrame(rows)


# ---- the pieces --------------------------------------------------------------------------------------------


def _setting(
    S: SyntheticSet | Data, network: str, width: int | None, depth: int | None, seed: int, device: torch.device | str | None
) -> tuple[torch.device, Tensor, Tensor, Callable[[int], nn.Module]]:
    """The device, S's images and labels there, and the function j -> the network of start j (theta0 ~ P_theta0, Eq. 15)."""
    device, (images, labels) = device_of(device), _images(S)
    recipe = {} if isinstance(S, Data) else S.recipe
    width = recipe.get("width", 128) if width is None else width
    depth = recipe.get("depth", 3) if depth is None else depth
    for name, value, least in (("width", width, 1), ("depth", depth, 1), ("seed", seed, 0)):
        check_number(name, value, least=least, whole=True)

    def start(j: int) -> nn.Module:
        return networks.build(
            network, S.shape, S.n_classes, width=width, depth=depth,
            generator=generator(seed, "reach", j), device=device, dtype=images.dtype,
        )  # fmt: skip

    start(0)  # a network that does not fit is told here, before any work
    return device, images.to(device), labels.to(device), start


def _images(S: SyntheticSet | Data) -> tuple[Tensor, Tensor]:
    return (S.train_images, S.train_labels) if isinstance(S, Data) else (S.images.detach(), S.labels)


def _displacement(theta: Sequence[Tensor], theta0: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch._foreach_sub([p.detach() for p in theta], theta0)


def _real(network: nn.Module, theta: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Gradient]:
    """L(T, theta) and its gradient, leaving running statistics, where a network has them, as training on S left them."""
    network.eval()
    found = loss_and_gradient(network, theta, x, y)
    network.train()
    return found


def _check_numbers(lr: float, **whole: int) -> None:
    for name, value in whole.items():
        check_number(name, value, least=1, whole=True)
    check_number("lr", lr, above=0)


# ---- angle and length where S is updated -------------------------------------------------------------------


@products("float32")
def angles(
    S: SyntheticSet, data: Data, recipe: Recipe, k: int, *, device: torch.device | str | None = None
) -> pd.DataFrame:
    """Angle and length of gS against gT, layer by layer, where a run of `recipe` would update S in outer iteration k.

    The network, the real batches and the steps of theta are those of outer iteration k, with S held still. k may be K or more:
    such a network the run never meets, and it is the same for every S of the run, so that they can be compared.

    Returns one row per t (0 and T - 1, the first and the last update; one where T = 1), level and matched layer: t, level,
    layer (the weight's name), cosine, ratio. level "class": the mean over the classes of the cosine of gS_c and gT_c, and the
    mean of |gS_c| over the mean of |gT_c|. level "union": the same of the mean gradient (Eq. 5). They are of a layer's whole
    gradient, where d1 takes every row by itself. cosine is NaN where a gradient is zero.
    Raises ValueError, before any work, for a set or a recipe that does not fit the data, or each other.
    Source: Section 3.2, Eq. 5-9.
    """
    check_number("k", k, least=0, whole=True)
    check(data, recipe)
    check_pair(S, data)
    if S.ipc != recipe.ipc:
        raise ValueError(f"the set has {S.ipc} images per class but the recipe {recipe.ipc}: give the recipe it was made by")
    device = device_of(device)
    data = data.to(device)
    images, labels = S.images.detach().to(data.train_images).requires_grad_(), S.labels.to(device)
    weights = class_weights(data, recipe)
    network = fresh_network(data, recipe, k)
    optimiser = torch.optim.SGD(network.parameters(), lr=recipe.lr_network, momentum=recipe.momentum_network)
    layers = [name for name, _ in networks.matched(network)]
    memory = Memory(largest=max(recipe.batch_real, recipe.ipc))
    T, zeta = recipe.schedule()
    rows = []
    for t in range(T):
        streams = streams_of(recipe, k, t)
        if t in (0, T - 1):
            B = sample(data, recipe, streams)
            _, _, gS, gT = match(network, images, labels, B, weights, recipe, k, memory)
            unions = [[layer[None] for layer in union(g, weights)] for g in (gS, gT)]
            for level, pair in (("class", (gS, gT)), ("union", unions)):
                for layer, a, b in zip(layers, *pair, strict=True):
                    cosine, ratio = _cosine_and_ratio(a.detach().flatten(1), b.detach().flatten(1))
                    rows.append({"t": t, "level": level, "layer": layer, "cosine": cosine, "ratio": ratio})
        if t < T - 1:
            move(network, optimiser, images.detach(), labels, data, recipe, where.steps(recipe.where, t, zeta), streams)
    return pd.DataFrame(rows)


def _cosine_and_ratio(A: Tensor, B: Tensor) -> tuple[float, float]:
    """Mean cosine of the rows, and ratio of their mean norms. A, B: (rows, n)."""
    norm_A, norm_B = A.norm(dim=1), B.norm(dim=1)
    cosine = ((A / norm_A[:, None]) * (B / norm_B[:, None])).sum(1).mean()
    return cosine.item(), (norm_A.mean() / norm_B.mean()).item()
