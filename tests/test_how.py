"""Distances against values by hand, properties and scipy. test_agreement.py compares them with the reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance as scipy_distance

from gmlib import how

A = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
B = torch.tensor([[4.0, 3.0], [0.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("d1", (1 - 24 / 25) + (1 - 0)),
        ("d2", math.sqrt(2) + math.sqrt(5)),
        ("d3", 2 + 5),
        ("d4", 2 / 2 + 5 / 2),
    ],
)
def test_values_by_hand(name, expected):
    assert how.DISTANCES[name](A, B).item() == pytest.approx(expected, rel=1e-15)


def pairs_of_gradients():
    numbers = st.floats(-10, 10, allow_nan=False).map(lambda v: v if abs(v) > 1e-3 else 1.0)
    return st.integers(1, 4).flatmap(
        lambda n: st.tuples(*[st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=3, max_size=3)] * 2)
    )


@settings(max_examples=50, deadline=None)
@given(pairs_of_gradients())
def test_properties_of_distances(pair):
    a, b = (torch.tensor(rows, dtype=torch.float64) for rows in pair)
    swap = torch.tensor([2, 0, 1])
    for name, d in how.DISTANCES.items():
        value = pytest.approx(d(a, b).item(), rel=1e-12, abs=1e-12)
        assert abs(d(a, a).item()) < 1e-12, f"{name} of equal gradients"
        assert d(b, a).item() == value, f"{name} is symmetric"
        assert d(a[swap], b[swap]).item() == value, f"{name} does not depend on the order of rows"
    # d1 depends on angles only, d2 on magnitudes too.
    assert how.d1(3 * a, 0.5 * b).item() == pytest.approx(how.d1(a, b).item(), rel=1e-9, abs=1e-12)
    assert how.d2(3 * a, 3 * b).item() == pytest.approx(3 * how.d2(a, b).item(), rel=1e-12)
    cosine = sum(scipy_distance.cosine(x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True))
    assert how.d1(a, b).item() == pytest.approx(cosine, rel=1e-9, abs=1e-12)
    euclid = sum(scipy_distance.euclidean(x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True))
    assert how.d2(a, b).item() == pytest.approx(euclid, rel=1e-12)


def test_eq_9_is_d1_plus_d2():
    assert how.improved(A, B).item() == pytest.approx((1 - 24 / 25) + math.sqrt(2) + 1 + math.sqrt(5), rel=1e-15)
    assert torch.equal(how.improved(A, B), how.distance("d1 + d2")([A], [B]))
    classes = torch.stack([A, B]), torch.stack([B, A])
    assert torch.equal(how.improved(*classes), how.distance("d1 + d2")([classes[0]], [classes[1]]))


def test_a_zero_row_counts_one_and_gives_no_nan():
    a = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    b = torch.ones(1, 3, dtype=torch.float64)
    value = how.d1(a, b)
    (gradient,) = torch.autograd.grad(value, a)
    assert value.item() == 1
    assert gradient.isfinite().all()
    equal = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(how.d2(equal, torch.zeros(1, 3, dtype=torch.float64)), equal)
    assert (gradient == 0).all()


def test_rows_of_each_type_of_parameter():
    g = torch.arange(2 * 24.0)
    assert how.as_rows(g.view(2, 2, 3, 2, 2), 4).shape == (2, 2, 12)  # two classes, convolution (2, 3, 2, 2)
    assert how.as_rows(g.view(2, 2, 3, 4), 3).shape == (2, 2, 12)  # layer norm (2, 3, 4)
    assert how.as_rows(g.view(2, 4, 6), 2).shape == (2, 4, 6)  # linear (4, 6)
    assert torch.equal(how.as_rows(g.view(2, 2, 3, 2, 2), 4)[1, 0], g[24:36])
    with pytest.raises(ValueError, match="no rows"):
        how.as_rows(g.view(2, 24), 1)


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("d1", [(1, "d1")]),
        ("d1 + 0.1*d2", [(1, "d1"), (0.1, "d2")]),
        ("d1+100d4", [(1, "d1"), (100, "d4")]),
        ("1e+2 * d4", [(100, "d4")]),
        ("1e-1*d3 + 2 * d1", [(0.1, "d3"), (2, "d1")]),
    ],
)
def test_parse_distance(expression, terms):
    assert how.parse_distance(expression) == terms


@pytest.mark.parametrize("expression", ["d1 + 0.1234567*d2", "16777217*d3", "1e-05*d1", "100*d4", "d1 + d2"])
def test_spelling_a_distance_keeps_every_digit(expression):
    assert how.spell_distance(how.parse_distance(expression)) == expression


@pytest.mark.parametrize(
    "expression", ["", "d5", "d1 + d9", "-d1", "0*d1", "d1 - d2", "d1 +", "d1**2", "1.2.3*d1", "cos"]
)
def test_bad_distances(expression):
    with pytest.raises(ValueError, match=r"d1, d2, d3, d4|positive number"):
        how.distance(expression)


def test_the_sum_over_layers_keeps_the_class_dimension():
    gS = [torch.stack([A, B]), torch.stack([B, B])]
    gT = [torch.stack([B, B]), torch.stack([A, B])]
    D = how.distance("d1 + 0.1*d2")
    one = how.d1(A, B) + 0.1 * how.d2(A, B)
    assert torch.allclose(D(gS, gT), torch.stack([2 * one, torch.zeros_like(one)]), atol=1e-14)
    assert how.layer_distances("d3", gS, gT)[0].tolist() == [7, 0]
