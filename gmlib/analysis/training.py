"""What happens while a network is trained on S: Figure 2's paths, and the gradients of S and T along the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .. import networks
from ..checks import check_number
from ..data import Data
from ..evaluation import accuracy
from ..maxmin import (
    check_numbers,
    displacement,
    images_of,
    loss_and_gradient,
    on_real,
    setting,
    walk,
)
from ..runtime import generator, progress_bar
from ..sets import SyntheticSet, check_pair
from ..speed.precision import matmul_precision


@matmul_precision("float32")
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
        raise ValueError(
            'sets must name one set or more, as {"M": S}, and none of them "T", the path on the real images'
        )
    check_numbers(lr, steps=steps, every=every, real_batch=real_batch)
    check_number("start", start, least=0, whole=True)
    if every > steps:
        raise ValueError(f"every={every} is more than steps={steps}: no path would be noted after its start")
    for S in sets.values():
        check_pair(S, data)
    device, first, _, theta0_of = setting(next(iter(sets.values())), network, width, depth, seed, device)
    images = {name: images_of(S) for name, S in sets.items()}
    images["T"] = data.sample_any(real_batch, generator(seed, "paths real"))
    images = {name: (x.to(device, first.dtype), y.to(device)) for name, (x, y) in images.items()}
    x_test, y_test = data.test_images.to(device, first.dtype), data.test_labels.to(device)

    rows, points = [], []
    bar = progress_bar("paths", len(images), "path", progress)
    for name, (x, y) in images.items():
        f = theta0_of(start)
        theta = list(f.parameters())
        theta0 = [p.detach().clone() for p in theta]
        for step, loss, gradient in walk(
            lambda theta, f=f, x=x, y=y: loss_and_gradient(f, theta, x, y), theta, lr, steps
        ):
            if step % every:
                continue
            norm = get_total_norm(gradient).item()
            if not math.isfinite(norm):
                break
            loss_T, gT = on_real(f, theta, *images["T"])
            points.append(displacement(theta, theta0))
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


@matmul_precision("float32")
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
    check_numbers(lr, steps=steps, every=every, n_starts=n_starts, real_batch=real_batch)
    check_pair(S, data)
    device, x, y, start = setting(S, network, width, depth, seed, device)
    x_T, y_T = (v.to(device) for v in data.sample_any(real_batch, generator(seed, "alignment real")))
    x_T = x_T.to(x.dtype)

    rows = []
    bar = progress_bar("alignment", n_starts, "start", progress)
    for j in range(n_starts):
        f = start(j)
        names, theta = zip(*f.named_parameters(), strict=True)
        matched = {name for name, _ in networks.matched(f)}
        for step, loss_S, gS in walk(lambda theta, f=f: loss_and_gradient(f, theta, x, y), theta, lr, steps):
            if step % every == 0:
                loss_T, gT = on_real(f, theta, x_T, y_T)
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
