"""How gradients are compared: by angle and magnitude (Section 3.2, Eq. 7 to Eq. 9; Table 2).

A gradient is a list with one tensor per matched layer. Each tensor is cut into rows: (..., rows, n), see `as_rows`.
The leading dimensions are kept. They are usually the classes, so one call compares all classes at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .checks import choose

Gradient = Sequence[Tensor]  # one (..., rows, n) tensor per matched layer


def as_rows(g: Tensor, ndim: int) -> Tensor:
    """Cut the gradient of one parameter into the rows that are compared.

    A row holds the weights of one output channel. Convolution weights (out, in, h, w) become ``out`` rows of in*h*w
    numbers. Parameters (C, h, w) become C rows of h*w. Matrices (out, in) are unchanged.

    Parameters
    ----------
    g : Tensor
        The shape of the parameter, after any leading dimensions.
    ndim : int
        Number of dimensions of the parameter.

    Returns
    -------
    Tensor
        (..., rows, n), a view if possible.

    Raises
    ------
    ValueError
        If the parameter has one dimension. Biases and the parameters of norm layers are not matched.

    Source
    ------
    Section 3.2, below Eq. 8.
    """
    if ndim < 2:
        raise ValueError(
            "biases and norm parameters have no rows: leave one-dimensional parameters out of the matching"
        )
    return g.flatten(g.ndim - ndim + 1)


def d1(A: Tensor, B: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Negative cosine similarity of each row, summed over rows.

    Parameters
    ----------
    A, B : Tensor
        (..., rows, n).
    eps : float
        Lower bound on the norm of a row, as in ``torch.nn.functional.cosine_similarity``. A row that is zero in A or
        B adds 1.

    Returns
    -------
    Tensor
        (...).

    Source
    ------
    Eq. 8, Section 3.2.
    """
    norms = A.norm(dim=-1).clamp_min(eps) * B.norm(dim=-1).clamp_min(eps)
    # sum_i (1 - A_i . B_i / (|A_i| |B_i|))
    return (1 - (A * B).sum(-1) / norms).sum(-1)


def d2(A: Tensor, B: Tensor) -> Tensor:
    """Euclidean distance of each row, summed over rows. The gradient at A = B is 0.

    Parameters
    ----------
    A, B : Tensor
        (..., rows, n).

    Returns
    -------
    Tensor
        (...).

    Source
    ------
    Eq. 9, second term, Section 3.2; Table 2.
    """
    # sum_i |A_i - B_i|
    return (A - B).norm(dim=-1).sum(-1)


def improved(A: Tensor, B: Tensor) -> Tensor:
    """The paper's distance of angle and magnitude: d1 + d2.

    ``how="d1 + d2"`` in a recipe gives the same sum.

    Parameters
    ----------
    A, B : Tensor
        (..., rows, n).

    Returns
    -------
    Tensor
        (...).

    Source
    ------
    Eq. 9, Section 3.2.
    """
    # sum_i (1 - A_i . B_i / (|A_i| |B_i|) + |A_i - B_i|)
    return d1(A, B) + d2(A, B)


def d3(A: Tensor, B: Tensor) -> Tensor:
    """Sum of squared differences.

    Parameters
    ----------
    A, B : Tensor
        (..., rows, n).

    Returns
    -------
    Tensor
        (...).

    Source
    ------
    Table 2, Section 4.3.
    """
    # sum_i |A_i - B_i|^2
    return (A - B).square().sum((-1, -2))


def d4(A: Tensor, B: Tensor) -> Tensor:
    """Mean of the squared differences of each row, summed over rows: d3 / n.

    Parameters
    ----------
    A, B : Tensor
        (..., rows, n).

    Returns
    -------
    Tensor
        (...).

    Source
    ------
    Table 2, Section 4.3.
    """
    # sum_i |A_i - B_i|^2 / n
    return (A - B).square().mean(-1).sum(-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"d1": d1, "d2": d2, "d3": d3, "d4": d4}

_TERM = re.compile(r"(?:(?P<weight>[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*\*?\s*)?(?P<name>[A-Za-z_]\w*)")


def parse_distance(expression: str) -> list[tuple[float, str]]:
    """Read a weighted sum of distances.

    Parameters
    ----------
    expression : str
        For instance "d1 + 0.1*d2".

    Returns
    -------
    list of (float, str)
        Weight and name of each term, for instance ``[(1.0, "d1"), (0.1, "d2")]``.

    Raises
    ------
    ValueError
        If a distance is unknown, a weight is not positive, or the expression is not such a sum.
    """
    terms = []
    # Split at "+", but not inside an exponent such as 1e+2.
    for part in re.split(r"(?<![0-9][eE])\+", str(expression)):
        match = _TERM.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"cannot read {expression!r} as a distance: write a sum of {', '.join(DISTANCES)} "
                'with positive weights, for instance "d1 + 0.1*d2"'
            )
        name = match["name"]
        choose(DISTANCES, "distance", name)
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
    """Write a weighted sum of distances. This is the inverse of `parse_distance`, with one spelling for each sum."""
    return " + ".join(name if weight == 1 else f"{str(weight).removesuffix('.0')}*{name}" for weight, name in terms)


def layer_distances(expression: str, gS: Gradient, gT: Gradient) -> list[Tensor]:
    """The distance d(gS_l, gT_l) of each layer l.

    Parameters
    ----------
    expression : str
        See `parse_distance`.
    gS, gT : list of Tensor
        (..., rows, n) per layer.

    Returns
    -------
    list of Tensor
        (...) per layer.
    """
    terms = parse_distance(expression)

    def d(A: Tensor, B: Tensor) -> Tensor:
        first, *others = (weight * DISTANCES[name](A, B) for weight, name in terms)
        return sum(others, first)

    return [d(A, B) for A, B in zip(gS, gT, strict=True)]


def distance(expression: str) -> Callable[[Gradient, Gradient], Tensor]:
    """Make the distance D between two gradients.

    Parameters
    ----------
    expression : str
        The distance d of one layer, see `parse_distance`.

    Returns
    -------
    callable
        D(gS, gT). It takes one (..., rows, n) tensor per layer on each side and returns (...).

    Raises
    ------
    ValueError
        If the expression cannot be read.

    Source
    ------
    Eq. 7, Section 3.2.
    """
    parse_distance(expression)  # a bad expression raises here, before any work

    def D(gS: Gradient, gT: Gradient) -> Tensor:
        # D = sum_l d(gS_l, gT_l)
        return torch.stack(layer_distances(expression, gS, gT)).sum(0)

    return D
