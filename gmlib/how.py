"""How gradients are compared: angle and magnitude (Section 3.2, Eq. 7-9; Table 2).

A gradient is a list with one tensor per weight, each already cut into its rows: shape (..., rows, n), see `as_rows`.
Leading dimensions (the classes, usually) are kept, so one call compares all classes at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Gradient = Sequence[Tensor]  # one (..., rows, n) tensor per matched layer


def as_rows(g: Tensor, ndim: int) -> Tensor:
    """Cut the gradient of one parameter into the rows that are compared, below Eq. 8.

    g: (..., *shape) of a parameter with `ndim` dimensions: convolution weights (out, in, h, w) give `out` rows of in*h*w,
    three dimensions (C, h, w) give C rows of h*w, matrices (out, in) stay. Returns (..., rows, n), a view where possible.
    One-dimensional parameters (biases, norm scale and shift) are not matched and raise ValueError.
    """
    if ndim < 2:
        raise ValueError(
            "biases and norm parameters have no rows: leave one-dimensional parameters out of the matching"
        )
    return g.flatten(g.ndim - ndim + 1)


def d1(A: Tensor, B: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Negative cosine similarity, summed over rows (Eq. 8). A, B: (..., rows, n) -> (...).

    Each norm is kept at or above `eps`, as in torch.nn.functional.cosine_similarity: a row that is zero on either
    side counts 1, no angle being known there.
    """
    norms = A.norm(dim=-1).clamp_min(eps) * B.norm(dim=-1).clamp_min(eps)
    # sum_i (1 - A_i . B_i / (|A_i| |B_i|))
    return (1 - (A * B).sum(-1) / norms).sum(-1)


def d2(A: Tensor, B: Tensor) -> Tensor:
    """Euclidean distance of each row, summed over rows (Eq. 9, second term). A, B: (..., rows, n) -> (...).

    Differentiable everywhere in torch's sense: the gradient at A = B is 0.
    """
    return (A - B).norm(dim=-1).sum(-1)


def d3(A: Tensor, B: Tensor) -> Tensor:
    """Sum of squared differences (Table 2). A, B: (..., rows, n) -> (...)."""
    return (A - B).square().sum((-1, -2))


def d4(A: Tensor, B: Tensor) -> Tensor:
    """Mean of squared differences over a row, summed over rows: d3 / n (Table 2). A, B: (..., rows, n) -> (...)."""
    return (A - B).square().mean(-1).sum(-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"d1": d1, "d2": d2, "d3": d3, "d4": d4}

_TERM = re.compile(r"(?:(?P<weight>[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*\*?\s*)?(?P<name>[A-Za-z_]\w*)")


def parse_distance(expression: str) -> list[tuple[float, str]]:
    """Read a weighted sum of distances: "d1 + 0.1*d2" -> [(1.0, "d1"), (0.1, "d2")].

    Raises ValueError for an unknown distance (the known ones are listed), a weight that is not a positive number, or
    anything else that is not such a sum.
    """
    terms = []
    # Split at "+", but not inside an exponent such as 1e+2.
    for part in re.split(r"(?<![0-9][eE])\+", str(expression)):
        match = _TERM.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"cannot read {expression!r} as a distance: write a sum of {', '.join(DISTANCES)} with positive weights, "
                'for instance "d1 + 0.1*d2"'
            )
        name = match["name"]
        if name not in DISTANCES:
            raise ValueError(f"unknown distance {name!r} in {expression!r}: choose from {', '.join(DISTANCES)}")
        try:
            weight = float(match["weight"] or 1)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise ValueError(
                f"weight {match['weight']!r} in {expression!r} is not a positive number: write it like 0.1*{name}"
            )
        terms.append((weight, name))
    return terms


def spell_distance(terms: Sequence[tuple[float, str]]) -> str:
    """The one spelling of a sum: [(1.0, "d1"), (0.1, "d2")] -> "d1 + 0.1*d2"."""
    return " + ".join(name if weight == 1 else f"{str(weight).removesuffix('.0')}*{name}" for weight, name in terms)


def layer_distances(expression: str, gS: Gradient, gT: Gradient) -> list[Tensor]:
    """d(gS_l, gT_l) of each layer l. gS, gT: one (..., rows, n) tensor per layer -> one (...) tensor per layer."""
    terms = parse_distance(expression)
    return [sum(weight * DISTANCES[name](A, B) for weight, name in terms) for A, B in zip(gS, gT, strict=True)]


def distance(expression: str) -> Callable[[Gradient, Gradient], Tensor]:
    """D of Eq. 7: the function (gS, gT) -> sum over layers of d(gS_l, gT_l), for a `parse_distance`-able expression.

    The function takes one (..., rows, n) tensor per layer on each side and returns (...).
    """
    parse_distance(expression)  # a bad expression is told here, before any work

    def D(gS: Gradient, gT: Gradient) -> Tensor:
        # D = sum_l d(gS_l, gT_l)
        return torch.stack(layer_distances(expression, gS, gT)).sum(0)

    return D
