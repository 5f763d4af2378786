"""What gradients are matched: inside each class, across classes, or both (Section 3.1, Eq. 4-6; Table 1).

gS and gT hold the class gradients of S and T: one (C, rows, n) tensor per layer (see `how.as_rows`). D is a distance from
`how.distance`. Every function here returns a scalar.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .how import Gradient

Distance = Callable[[Gradient, Gradient], Tensor]
Loss = Callable[..., Tensor]  # (D, gS, gT, *, lam, weights, k, mixed) -> scalar
Mixed = tuple[Gradient, Gradient]


def union(g: Gradient, weights: Tensor) -> list[Tensor]:
    """Gradient of the union of the class batches from the class gradients, with no further pass (Eq. 5).

    g: one (C, rows, n) tensor per layer. weights: (C,) with sum 1, the share |B_c| / sum |B_c|
    of each class, or its share in T where T is not balanced. Returns one (rows, n) tensor per layer.
    """
    # g_union = sum_c |B_c| g_c / sum_c |B_c|
    return [(weights.to(layer).view(-1, 1, 1) * layer).sum(0) for layer in g]


def intra(D: Distance, gS: Gradient, gT: Gradient, **_) -> Tensor:
    """Match class by class (Eq. 4)."""
    # loss_intra = sum_c D(gS_c, gT_c)
    return D(gS, gT).sum()


def inter(
    D: Distance, gS: Gradient, gT: Gradient, *, lam: float, weights: Tensor, mixed: Mixed | None = None, **_
) -> Tensor:
    """Match the gradients of the whole batch, lam times (Eq. 6, second term).

    mixed: gradients of S and T on mixed mini-batches, one (rows, n) tensor per layer each, to take
    instead of Eq. 5's union of the class gradients (the released scripts' inter-class batches).
    """
    uS, uT = mixed or (union(gS, weights), union(gT, weights))
    # lam * loss_inter = lam * D(mean_c gS_c, mean_c gT_c)
    return lam * D(uS, uT)


def interleaved(D: Distance, gS: Gradient, gT: Gradient, *, k: int, **options) -> Tensor:
    """Intra-class in even outer iterations k, inter-class in odd ones (footnote 3; Table 1)."""
    return (intra if k % 2 == 0 else inter)(D, gS, gT, **options)


def multi(D: Distance, gS: Gradient, gT: Gradient, **options) -> Tensor:
    """Match both levels at once (Eq. 6; line 8 of Algorithm 1). options: those of `inter`."""
    # loss = sum_c D(gS_c, gT_c) + lam * D(mean_c gS_c, mean_c gT_c)
    return intra(D, gS, gT) + inter(D, gS, gT, **options)


WHAT: dict[str, Loss] = {"intra": intra, "inter": inter, "interleaved": interleaved, "multi": multi}
