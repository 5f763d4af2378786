"""What gradients are matched: intra-class, inter-class, or both (Section 3.1, Eq. 4 to Eq. 6; Table 1).

gS and gT are the class gradients of S and T: one (C, rows, n) tensor per matched layer, see `gmlib.how.as_rows`. D is
a distance from `gmlib.how.distance`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .how import Gradient

Distance = Callable[[Gradient, Gradient], Tensor]
Loss = Callable[..., Tensor]  # (D, gS, gT, *, lam, weights, k, mixed) -> scalar
Mixed = tuple[Gradient, Gradient]


def union(g: Gradient, weights: Tensor) -> list[Tensor]:
    """Gradient of the union of the class batches, computed from the class gradients without another pass.

    Parameters
    ----------
    g : list of Tensor
        Class gradients, (C, rows, n) per layer.
    weights : Tensor
        (C,) with sum 1. The weight of class c is ``|B_c| / sum_c |B_c|``, or its share of T if T is not balanced.

    Returns
    -------
    list of Tensor
        (rows, n) per layer.

    Source
    ------
    Eq. 5, Section 3.1.
    """
    # g_union = sum_c |B_c| g_c / sum_c |B_c|
    return [(weights.to(layer).view(-1, 1, 1) * layer).sum(0) for layer in g]


def intra(D: Distance, gS: Gradient, gT: Gradient, **_) -> Tensor:
    """Match the gradients of each class.

    Parameters
    ----------
    D : callable
        From `gmlib.how.distance`.
    gS, gT : list of Tensor
        Class gradients, (C, rows, n) per layer.

    Returns
    -------
    Tensor
        A scalar.

    Source
    ------
    Eq. 4, Section 3.1.
    """
    # loss_intra = sum_c D(gS_c, gT_c)
    return D(gS, gT).sum()


def inter(
    D: Distance, gS: Gradient, gT: Gradient, *, lam: float, weights: Tensor, mixed: Mixed | None = None, **_
) -> Tensor:
    """Match the gradients of the union of all classes, with weight lam.

    Parameters
    ----------
    D : callable
        From `gmlib.how.distance`.
    gS, gT : list of Tensor
        Class gradients, (C, rows, n) per layer.
    lam : float
        lambda, the weight of this term.
    weights : Tensor
        (C,), see `union`.
    mixed : tuple, optional
        Gradients of S and of T on batches of mixed classes, (rows, n) per layer each. They replace the unions of the
        class gradients. The released scripts use such batches.

    Returns
    -------
    Tensor
        A scalar.

    Source
    ------
    Eq. 6, second term, Section 3.1.
    """
    uS, uT = mixed or (union(gS, weights), union(gT, weights))
    # lam * loss_inter = lam * D(mean_c gS_c, mean_c gT_c)
    return lam * D(uS, uT)


def interleaved(D: Distance, gS: Gradient, gT: Gradient, *, k: int, **options) -> Tensor:
    """Use `intra` in even outer iterations and `inter` in odd ones.

    Parameters
    ----------
    D, gS, gT, **options
        See `inter`.
    k : int
        The outer iteration.

    Returns
    -------
    Tensor
        A scalar.

    Source
    ------
    Section 4.2, footnote 3; Table 1.
    """
    level = intra if k % 2 == 0 else inter
    return level(D, gS, gT, **options)


def multi(D: Distance, gS: Gradient, gT: Gradient, **options) -> Tensor:
    """Match both levels at once: `intra` plus `inter`.

    Parameters
    ----------
    D, gS, gT, **options
        See `inter`.

    Returns
    -------
    Tensor
        A scalar.

    Source
    ------
    Eq. 6, Section 3.1; line 8 of Algorithm 1.
    """
    # loss = sum_c D(gS_c, gT_c) + lam * D(mean_c gS_c, mean_c gT_c)
    return intra(D, gS, gT) + inter(D, gS, gT, **options)


WHAT: dict[str, Loss] = {"intra": intra, "inter": inter, "interleaved": interleaved, "multi": multi}
