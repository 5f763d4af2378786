"""The reference implementation against numbers worked out by hand.

Expected values come from arithmetic in the comments, from finite differences, from torch.nn's own
layers, or from a second, scalar version of Algorithm 1 below that knows nothing but floats.
"""

import math

import pytest
import reference as ref
import torch

D1, D2, D3, D4 = [(1.0, "d1")], [(1.0, "d2")], [(1.0, "d3")], [(1.0, "d4")]


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def convnet_theta(generator, channels, width, depth, features, n_classes):
    """Random parameters for ConvNet, of a size that keeps the scores moderate."""
    theta = []
    for block in range(depth):
        n_in = channels if block == 0 else width
        theta.append(normal(generator, width, n_in, 3, 3) / math.sqrt(9 * n_in))
        theta.append(0.1 * normal(generator, width))
        theta.append(1.0 + 0.2 * normal(generator, width))
        theta.append(0.1 * normal(generator, width))
    theta.append(normal(generator, n_classes, features) / math.sqrt(features))
    theta.append(0.1 * normal(generator, n_classes))
    return theta


def finite_difference(function, x, h=1e-5):
    """Central differences of a scalar function in every entry of x."""
    derivative = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=torch.float64)
        step[i] = h
        step = step.reshape(x.shape)
        derivative.view(-1)[i] = (function(x + step) - function(x - step)) / (2 * h)
    return derivative


def assert_close(actual, expected, tolerance):
    """The largest error, relative to the largest expected entry, is below the tolerance."""
    expected = expected.detach()
    assert actual.shape == expected.shape
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((actual - expected).abs().max()) <= tolerance * scale


# --- distances ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1, 0), (0, 1), 1),  # a right angle
        ((1, 2, 2), (2, 1, 2), 1 / 9),  # a.b = 2 + 2 + 4 = 8, both norms 3: 1 - 8/9
        ((3, 4), (4, 3), 0.04),  # a.b = 24, both norms 5: 1 - 24/25
        ((3, 4), (30, 40), 0),  # same direction, whatever the length
        ((3, 4), (-6, -8), 2),  # opposite directions
        ((0, 0), (3, 4), 1),  # 0 / (1e-8 * 5)
        ((0, 0), (0, 0), 1),
        ((1e-9, 0), (1, 0), 0.9),  # the norm 1e-9 counts as 1e-8: 1 - 1e-9 / 1e-8
        ((1e-9, 0), (1e-9, 0), 0.99),  # each norm on its own counts as 1e-8: 1 - 1e-18 / 1e-16
    ],
)
def test_d1(a, b, expected):
    assert float(ref.d1(vector(*a), vector(*b))) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("scale", [1e3, 1.0, 1e-6, 1e-9, 0.0])
def test_d1_is_the_cosine_similarity_of_torch(scale):
    generator = torch.Generator().manual_seed(2)
    a, b = scale * normal(generator, 7), normal(generator, 7)
    expected = 1 - torch.nn.functional.cosine_similarity(a, b, dim=0, eps=1e-8)
    assert float(ref.d1(a, b)) == pytest.approx(float(expected), rel=1e-14)


def test_d2_d3_d4():
    # a - b = (-1, 1, 0)
    a, b = vector(1, 2, 2), vector(2, 1, 2)
    assert float(ref.d2(a, b)) == pytest.approx(math.sqrt(2), rel=1e-15)
    assert float(ref.d3(a, b)) == 2
    assert float(ref.d4(a, b)) == pytest.approx(2 / 3, rel=1e-15)
    # a - b = (3, 4), 9 + 16 = 25
    a, b = vector(4, 6), vector(1, 2)
    assert [float(d(a, b)) for d in (ref.d2, ref.d3, ref.d4)] == [5, 25, 12.5]


@pytest.mark.parametrize(
    ("name", "a", "b", "expected"),
    [
        ("d1", (1, 0), (0, 1), (0, -1)),  # -b / (|a||b|) + (a.b) a / (|a|^3 |b|), second part 0
        ("d1", (3, 4), (4, 3), (-28 / 625, 21 / 625)),  # -(4, 3)/25 + 24 (3, 4)/625
        ("d1", (0, 0), (3, 4), (-0.6e8, -0.8e8)),  # the floor is a constant: -b / (1e-8 |b|)
        ("d1", (0, 0), (0, 0), (0, 0)),
        ("d2", (4, 6), (1, 2), (0.6, 0.8)),  # (a - b) / |a - b|
        ("d2", (4, 6), (4, 6), (0, 0)),  # at the kink: 0 by convention
        ("d3", (4, 6), (1, 2), (6, 8)),  # 2 (a - b)
        ("d4", (4, 6), (1, 2), (3, 4)),  # 2 (a - b) / 2
    ],
)
def test_derivatives_of_distances(name, a, b, expected):
    a = vector(*a).requires_grad_(True)
    (derivative,) = torch.autograd.grad(ref.DISTANCES[name](a, vector(*b)), a)
    assert derivative.tolist() == pytest.approx(expected, rel=1e-14, abs=1e-14)


def test_rows():
    g = torch.arange(24.0, dtype=torch.float64)
    four = ref.rows(g.reshape(2, 3, 2, 2))  # (out, in, h, w): 2 rows of 12
    assert [row.tolist() for row in four] == [list(range(12)), list(range(12, 24))]
    three = ref.rows(g.reshape(2, 3, 4))  # (C, h, w): 2 rows of 12
    assert [row.tolist() for row in three] == [list(range(12)), list(range(12, 24))]
    two = ref.rows(g.reshape(4, 6))  # (out, in): 4 rows of 6
    assert [row[0].item() for row in two] == [0, 6, 12, 18]
    assert [len(row) for row in two] == [6, 6, 6, 6]
    assert ref.rows(g) == []
    with pytest.raises(ValueError, match="0 dimensions"):
        ref.rows(torch.tensor(1.0))


def test_distance_sums_rows_and_layers_and_leaves_biases_out():
    # A convolution (2, 1, 1, 2) with bias, a linear layer (2, 2) with bias. Row by row:
    #   (1, 0) (0, 1): d1 = 1,    d3 = 2     (3, 4) (4, 3): d1 = 0.04, d3 = 2
    #   (2, 0) (5, 0): d1 = 0,    d3 = 9     (0, 1) (0, -1): d1 = 2,   d3 = 4
    gS = [
        vector(1, 0, 3, 4).reshape(2, 1, 1, 2),
        vector(7, 7),
        vector(2, 0, 0, 1).reshape(2, 2),
        vector(8, 9),
    ]
    gT = [
        vector(0, 1, 4, 3).reshape(2, 1, 1, 2),
        vector(-7, 1),
        vector(5, 0, 0, -1).reshape(2, 2),
        vector(0, 0),
    ]
    assert float(ref.layer_distance(D1, gS[0], gT[0])) == pytest.approx(1.04, rel=1e-14)
    assert float(ref.layer_distance(D1, gS[1], gT[1])) == 0
    assert float(ref.distance(D1, gS, gT)) == pytest.approx(3.04, rel=1e-14)
    assert float(ref.distance(D3, gS, gT)) == 17
    assert float(ref.distance(D4, gS, gT)) == 8.5
    assert float(ref.distance(D2, gS, gT)) == pytest.approx(2 * math.sqrt(2) + 3 + 2, rel=1e-15)
    # Eq. 9, and the weights of Table 2 and footnote 5
    assert float(ref.distance(D1 + D2, gS, gT)) == pytest.approx(8.04 + 2 * math.sqrt(2), rel=1e-14)
    assert float(ref.distance([(1, "d1"), (100, "d4")], gS, gT)) == pytest.approx(853.04, rel=1e-14)
    assert float(ref.distance([(1, "d1"), (0.1, "d3")], gS, gT)) == pytest.approx(4.74, rel=1e-14)


# --- the network and its loss ---------------------------------------------------------------------


def test_instance_norm_by_hand():
    # Image 0, channel 0: 1 3 / 1 3, mean 2, variance 1. Channel 1: constant, so 0 before the shift.
    # Image 1, channel 0: 0 0 / 0 4, mean 1, variance (1 + 1 + 1 + 9) / 4 = 3 (unbiased it would be 4).
    x = torch.tensor([[[[1, 3], [1, 3]], [[5, 5], [5, 5]]], [[[0, 0], [0, 4]], [[0, 0], [0, 0]]]]).double()
    y = ref.instance_norm(x, vector(2, 10), vector(0.5, -1))
    a, b = 2 / math.sqrt(1.00001), 2 / math.sqrt(3.00001)
    assert y[0, 0].flatten().tolist() == pytest.approx([0.5 - a, 0.5 + a, 0.5 - a, 0.5 + a], rel=1e-14)
    assert y[0, 1].flatten().tolist() == [-1] * 4
    assert y[1, 0].flatten().tolist() == pytest.approx([0.5 - b, 0.5 - b, 0.5 - b, 0.5 + 3 * b], rel=1e-14)


@pytest.mark.parametrize(
    ("shape", "depth", "padding", "side"),
    [
        ((1, 28, 28), 3, 3, 4),  # 28 + 2 * 3 - 2 = 32, halved three times
        ((3, 32, 32), 3, 1, 4),
        ((1, 8, 8), 3, 1, 1),
        ((3, 10, 12), 1, 1, None),  # 5 x 6
        ((3, 28, 28), 2, 1, 7),  # only grey 28x28 is padded by 3
    ],
)
def test_convnet_against_torch_layers(shape, depth, padding, side):
    generator = torch.Generator().manual_seed(3)
    features = 4 * (side * side if side else 30)
    theta = convnet_theta(generator, shape[0], 4, depth, features, 5)
    layers, n_in = [], shape[0]
    for block in range(depth):
        layers += [
            torch.nn.Conv2d(n_in, 4, 3, padding=padding if block == 0 else 1),
            torch.nn.GroupNorm(4, 4),
            torch.nn.ReLU(),
            torch.nn.AvgPool2d(2),
        ]
        n_in = 4
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(features, 5)).double()
    with torch.no_grad():
        for p, value in zip(network.parameters(), theta, strict=True):
            p.copy_(value)
    x, y = normal(generator, 3, *shape), torch.tensor([4, 0, 2])
    expected = network(x)
    assert_close(ref.convnet(theta, x, depth), expected, 1e-12)
    assert_close(ref.convnet(theta, x), expected, 1e-12)

    # and its loss and gradient
    value = torch.nn.CrossEntropyLoss()(expected, y)
    assert float(ref.loss(theta, x, y)) == pytest.approx(value.item(), rel=1e-13)
    value.backward()
    for g, p in zip(ref.gradient(theta, x, y), network.parameters(), strict=True):
        assert not g.requires_grad
        if g.dim() > 1:
            assert_close(g, p.grad, 1e-10)
        else:  # instance norm cancels the convolution's bias: both are 0 up to rounding there
            assert float((g - p.grad).abs().max()) < 1e-14


def test_convnet_refuses_a_wrong_number_of_parameters():
    with pytest.raises(ValueError, match="blocks"):
        ref.convnet([vector(0)] * 6, torch.zeros(1, 1, 8, 8).double(), depth=2)


def test_cross_entropy_by_hand():
    # (0, 0): p = 1/2. (log 3, 0): p = 3/4, 1/4.
    scores = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    value = ref.cross_entropy(scores, torch.tensor([0, 0, 0]))
    assert float(value) == pytest.approx((math.log(2) + 2 * math.log(4 / 3)) / 3, rel=1e-14)
    value = ref.cross_entropy(scores, torch.tensor([1, 0, 1]))
    assert float(value) == pytest.approx((math.log(2) + math.log(4 / 3) + math.log(4)) / 3, rel=1e-14)
    # large scores do not overflow: log(e^1000 + e^0) - 0 = 1000
    assert float(ref.cross_entropy(vector(1000, 0).reshape(1, 2), torch.tensor([1]))) == 1000


def test_gradient_of_a_linear_network_by_hand():
    # theta = 0 gives p = 1/3 each. dL/dW = mean over images of (p - onehot(y)) x^T:
    #   image (3, 6), label 0: (-2/3, 1/3, 1/3) x (3, 6) = (-2, -4), (1, 2), (1, 2)
    #   image (0, 3), label 2: (1/3, 1/3, -2/3) x (0, 3) = (0, 1), (0, 1), (0, -2)
    theta = [torch.zeros(3, 2).double(), torch.zeros(3).double()]
    x = vector(3, 6, 0, 3).reshape(2, 1, 1, 2)
    gW, gb = ref.gradient(theta, x, torch.tensor([0, 2]))
    assert gW.flatten().tolist() == pytest.approx([-1, -1.5, 0.5, 1.5, 0.5, 0], abs=1e-15)
    assert gb.tolist() == pytest.approx([-1 / 6, 1 / 3, -1 / 6], abs=1e-15)
    assert not theta[0].requires_grad  # the caller's parameters are left alone


def test_gradient_against_finite_differences():
    generator = torch.Generator().manual_seed(5)
    theta = convnet_theta(generator, 2, 3, 1, 12, 3)
    x, y = normal(generator, 4, 2, 4, 4), torch.tensor([0, 1, 2, 1])
    for i, g in enumerate(ref.gradient(theta, x, y)):
        if i == 1:  # the convolution's bias, cancelled by instance norm
            assert float(g.abs().max()) < 1e-14
            continue

        def of_parameter(p, i=i):
            return ref.loss([*theta[:i], p, *theta[i + 1 :]], x, y)

        assert_close(g, finite_difference(of_parameter, theta[i]), 1e-7)


# --- what is matched ------------------------------------------------------------------------------

# Two classes, one layer of one row and a bias that must not count.
GS = [[vector(1, 0).reshape(1, 2), vector(9)], [vector(3, 4).reshape(1, 2), vector(0)]]
GT = [[vector(0, 1).reshape(1, 2), vector(0)], [vector(4, -3).reshape(1, 2), vector(5)]]


def test_union_gradient_by_hand():
    union = ref.union_gradient(GS)  # (1, 0) and (3, 4): mean (2, 2); 9 and 0: 4.5
    assert union[0].tolist() == [[2, 2]] and union[1].tolist() == [4.5]
    for weights in ([1, 3], [0.25, 0.75], vector(0.25, 0.75)):  # (1 + 9, 12) / 4, (9 + 0) / 4
        union = ref.union_gradient(GS, weights)
        assert union[0].tolist() == [[2.5, 3]] and union[1].tolist() == [2.25]
    with pytest.raises(ValueError, match="3 weights for 2 classes"):
        ref.union_gradient(GS, [1, 1, 1])


@pytest.mark.parametrize("sizes", [(3, 3, 3), (1, 4, 2)])
def test_union_gradient_is_the_gradient_of_the_union_batch(sizes):
    generator = torch.Generator().manual_seed(7)
    theta = convnet_theta(generator, 1, 3, 1, 12, 3)
    batches = [normal(generator, n, 1, 4, 4) for n in sizes]
    labels = [torch.full((n,), c) for c, n in enumerate(sizes)]
    by_class = [ref.gradient(theta, x, y) for x, y in zip(batches, labels, strict=True)]
    union = ref.gradient(theta, torch.cat(batches), torch.cat(labels))
    for g, expected in zip(ref.union_gradient(by_class, sizes), union, strict=True):
        assert float((g - expected).abs().max()) < 1e-15
    if len(set(sizes)) > 1:  # unbalanced, the plain mean is another vector
        plain = ref.union_gradient(by_class)
        assert float((plain[-1] - union[-1]).abs().max()) > 1e-3


def test_matching_loss_by_hand():
    # d3, class 0: (1, -1), 2. Class 1: (-1, 7), 50. Intra: 52.
    # Union: S (2, 2), T (2, -1), difference (0, 3): 9, times lam (C = 2 by default).
    # Union weighted by 1/4, 3/4: S (2.5, 3), T (3, 0.25 - 2.25 = -2), difference (-0.5, 5): 25.25.
    def value(mode, **options):
        return float(ref.matching_loss(mode, D3, GS, GT, **options))

    assert value("intra") == 52
    assert value("inter") == 18
    assert value("multi") == 70
    assert value("inter", lam=3) == 27
    assert value("multi", lam=3) == 79
    assert value("multi", lam=0) == 52
    assert value("intra", lam=3) == 52
    assert value("intra", weights=[1, 3]) == 52  # the sum over classes is unweighted
    assert value("inter", weights=[1, 3]) == 50.5
    assert value("multi", weights=[0.25, 0.75]) == 102.5
    assert [value("interleaved", k=k) for k in range(4)] == [52, 18, 52, 18]
    with pytest.raises(ValueError, match="known: intra, inter, interleaved, multi"):
        value("both")
    # d1: classes 1 and 1 (right angles both); union 2*2 - 2 = 2 over sqrt(8) sqrt(5) = sqrt(40)
    expected = 2 + 2 * (1 - 2 / math.sqrt(40))
    assert float(ref.matching_loss("multi", D1, GS, GT)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("mode", ["intra", "inter", "multi"])
@pytest.mark.parametrize("terms", [D1, D2, D3, D4, [(1.0, "d1"), (0.1, "d2")]])
def test_matching_gradient_against_finite_differences(mode, terms):
    generator = torch.Generator().manual_seed(11)
    theta = convnet_theta(generator, 2, 2, 1, 2, 2)
    S, labels = normal(generator, 3, 2, 2, 2), torch.tensor([1, 0, 1])  # in no order, 1 and 2 images
    real = [normal(generator, 3, 2, 2, 2), normal(generator, 5, 2, 2, 2)]
    weights = [0.375, 0.625]

    def value(S):
        return ref.matching_gradient(theta, S, labels, real, mode, terms, weights=weights)[0]

    _, dS = ref.matching_gradient(theta, S, labels, real, mode, terms, weights=weights)
    assert_close(dS, finite_difference(value, S), 1e-6)


def test_matching_gradient_is_finite_where_the_gradients_agree():
    # S equal to the real batch: every row of the difference is 0, the square root's kink.
    generator = torch.Generator().manual_seed(13)
    theta = convnet_theta(generator, 1, 3, 2, 3, 2)
    S, labels = normal(generator, 2, 1, 4, 4), torch.tensor([0, 1])
    value, dS = ref.matching_gradient(theta, S, labels, [S[:1], S[1:]], "multi", D2)
    assert value == 0
    assert float(dS.abs().max()) == 0


# --- where theta moves ----------------------------------------------------------------------------


def test_zeta_adaptive_at_every_t():
    by_hand = [
        *[50, 40, 30, 20, 10, 10, 10, 10, 10, 10],  # t = 0 .. 9
        *[5, 5, 5, 5, 5, 5, 5, 5, 5, 5],
        *[5, 5, 5, 5, 5, 5, 5, 5, 5, 5],
        *[5, 5, 5, 5, 5, 5, 5, 5, 5, 5],
        *[5, 5, 5, 5, 5, 5, 5, 5, 5, 5],  # t = 40 .. 49
    ]
    assert [ref.zeta_adaptive(t) for t in range(50)] == by_hand
    with pytest.raises(ValueError, match="-1"):
        ref.zeta_adaptive(-1)


def test_steps_per_outer_iteration():
    assert ref.FIXED == {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    # IPC 10: 9 updates of theta, 9 * 50; 50 + 40 + 30 + 20 + 5 * 10 = 190 (t = 0 .. 8)
    # IPC 50: 49 * 10; 140 + 6 * 10 + 39 * 5 = 395 (t = 0 .. 48)
    # IPC 20: 19 * 25; 140 + 60 + 9 * 5 = 245. IPC 30: 29 * 20; 200 + 19 * 5. IPC 40: 39 * 15; 200 + 29 * 5.
    by_hand = {1: (0, 0), 10: (450, 190), 20: (475, 245), 30: (580, 295), 40: (585, 345), 50: (490, 395)}
    for ipc, (T, zeta) in ref.FIXED.items():
        fixed = ref.steps_per_outer_iteration("fixed", T, zeta)
        adaptive = ref.steps_per_outer_iteration("adaptive", T)
        assert (fixed, adaptive) == by_hand[ipc]
    with pytest.raises(ValueError, match="known: fixed, adaptive"):
        ref.steps_per_outer_iteration("sometimes", 10, 50)


def test_sgd_step_by_hand_and_against_torch():
    # lr 0.1, momentum 0.5. Buffers: 2; 0.5 * 2 + 4 = 5; 0.5 * 5 - 1 = 1.5. p: 1 -> 0.8 -> 0.3 -> 0.15
    p, buffers, trail = [vector(1)], None, []
    torch_p = torch.nn.Parameter(vector(1))
    optimiser = torch.optim.SGD([torch_p], lr=0.1, momentum=0.5)
    for g in (2.0, 4.0, -1.0):
        p, buffers = ref.sgd_step(p, [vector(g)], buffers, 0.1, 0.5)
        trail.append(p[0].item())
        torch_p.grad = vector(g)
        optimiser.step()
        assert p[0].item() == pytest.approx(torch_p.item(), rel=1e-15)
    assert trail == pytest.approx([0.8, 0.3, 0.15], rel=1e-14)
    # no momentum: 1 - 0.2 - 0.4 + 0.1
    p, buffers = [vector(1)], None
    for g in (2.0, 4.0, -1.0):
        p, buffers = ref.sgd_step(p, [vector(g)], buffers, 0.1, 0.0)
    assert p[0].item() == pytest.approx(0.5, rel=1e-14)


# One pixel worth 1, label 0; a linear network that starts at 0. By symmetry W = (v, -v) and
# b = (v, -v), so the scores differ by z = 4v, and p = sigmoid(z) is the probability of label 0. The
# gradient in W_0 and b_0 is -(1 - p), in W_1 and b_1 1 - p, so with lr 0.5 a step adds 2 (1 - p) to z:
#   z: 0, 1, 1 + 2 * 0.26894 = 1.53788, 1.53788 + 2 * 0.17684 = 1.89156.  p: 0.5, 0.73106, 0.82316, 0.86893
# Validation: the same pixel labelled 0, 0, 1, so L = -(2 log p + log(1 - p)) / 3, least at p = 2/3:
#   0.69315, 0.64659, 0.70752: it rises at step 2.
# L(T) - L(S) = (log p - log(1 - p)) / 3 = z / 3: 0, 0.33333, 0.51263, 0.63052
PIXEL = torch.ones(1, 1, 1, 1).double()
ZERO = [torch.zeros(2, 1).double(), torch.zeros(2).double()]
SETTLED = 1 + 2 / (1 + math.e)  # z after two steps


@pytest.mark.parametrize(
    ("val_labels", "gap", "max_steps", "steps"),
    [
        ([0, 0, 1], None, 50, 2),
        ([0, 0, 1], None, 1, 1),
        ([0], None, 50, 50),  # validating on S itself: never rises
        ([0], None, 7, 7),
        ([1], None, 50, 1),  # rises at once: the loss before any step is compared too
        ([0, 0, 1], 0.2, 50, 1),
        ([0, 0, 1], 0.4, 50, 2),
        ([0, 0, 1], 0.6, 50, 3),
        ([0], 0.0, 50, 50),  # a gap of exactly 0 is not above 0
    ],
)
def test_overfit_stopping_by_hand(val_labels, gap, max_steps, steps):
    val_images = torch.ones(len(val_labels), 1, 1, 1).double()
    theta, buffers, taken = ref.update_theta_until_overfit(
        ZERO, None, PIXEL, torch.tensor([0]), val_images, torch.tensor(val_labels), 0.5, 0.0, gap, max_steps
    )
    assert taken == steps
    # the step at which overfitting was seen is kept
    expected, expected_buffers = ref.update_theta(ZERO, None, PIXEL, torch.tensor([0]), steps, 0.5, 0.0)
    assert [p.tolist() for p in theta] == [p.tolist() for p in expected]
    assert [b.tolist() for b in buffers] == [b.tolist() for b in expected_buffers]
    if steps == 2:
        v = SETTLED / 4
        assert theta[0].flatten().tolist() == pytest.approx([v, -v], rel=1e-14)
        assert theta[1].tolist() == pytest.approx([v, -v], rel=1e-14)


# --- Algorithm 1 ----------------------------------------------------------------------------------


def scalar_algorithm1(S0, theta0_by_k, real, mode, lam, T, zeta_of_t, rates, weights, overfit=None, gap=None):
    """Algorithm 1 with d3 for two one-pixel images s_0, s_1 (labels 0, 1) and a linear network, in floats.

    Scores W_j x + b_j with W = (v, -v), b = (a, -a), so p(x) = sigmoid(2 (v x + a)) is the probability
    of label 0. The gradient in W_0 of image x of class c is q_c(x) = (p(x) - [c = 0]) x; in W_1 it is
    -q_c(x), so every D is 2 (q^S - q^T)^2. The derivative in x: q'_c(x) = p - [c = 0] + 2 v x p (1 - p).
    """
    lr_S, momentum_S, lr_theta, momentum_theta = rates
    classes = (0, 1)

    def p(x, v, a):
        return 1 / (1 + math.exp(-2 * (v * x + a)))

    def q(c, x, v, a):
        return (p(x, v, a) - (c == 0)) * x

    def dq(c, x, v, a):
        return p(x, v, a) - (c == 0) + 2 * v * x * p(x, v, a) * (1 - p(x, v, a))

    def loss(pixels, v, a):  # two images, labelled 0 and 1
        return -(math.log(p(pixels[0], v, a)) + math.log(1 - p(pixels[1], v, a))) / 2

    s, buffer_s, losses = list(S0), [0, 0], []
    for k, (v, a) in enumerate(theta0_by_k):
        buffer_v = buffer_a = 0
        intra_on = mode in ("intra", "multi") or (mode == "interleaved" and k % 2 == 0)
        inter_on = mode in ("inter", "multi") or (mode == "interleaved" and k % 2 == 1)
        for t in range(T):
            apart = [
                q(c, s[c], v, a) - sum(q(c, x, v, a) for x in real[k][t][c]) / len(real[k][t][c]) for c in classes
            ]
            union = sum(weights[c] * apart[c] for c in classes)
            losses.append(intra_on * sum(2 * apart[c] ** 2 for c in classes) + inter_on * lam * 2 * union**2)
            for c in classes:
                ds = (intra_on * 4 * apart[c] + inter_on * lam * 4 * union * weights[c]) * dq(c, s[c], v, a)
                buffer_s[c] = momentum_S * buffer_s[c] + ds
                s[c] -= lr_S * buffer_s[c]
            for _ in range(zeta_of_t(t)):  # after the last t too: by then v and a are no longer read
                buffer_v = momentum_theta * buffer_v + sum(q(c, s[c], v, a) for c in classes) / 2
                buffer_a = momentum_theta * buffer_a + sum(p(s[c], v, a) - (c == 0) for c in classes) / 2
                old = v, a
                v, a = v - lr_theta * buffer_v, a - lr_theta * buffer_a
                if overfit is None:
                    continue
                val = overfit(k, t)
                if gap is None and loss(val, *old) < loss(val, v, a):
                    break
                if gap is not None and loss(val, v, a) - loss(s, v, a) > gap:
                    break
    return s, losses


def scalar_case(mode, *, overfit=None, gap=None, zeta=lambda t: 3 - t, K=3, T=3, weights=(0.3, 0.7), **options):
    """The same small run by the reference and by scalar_algorithm1."""
    rates = {"lr_S": 0.3, "momentum_S": 0.5, "lr_theta": 0.4, "momentum_theta": 0.6} | options
    S0, theta0 = (0.8, -1.1), [(0.5, -0.2), (-0.3, 0.4), (0.9, 0.1)][:K]
    real = [[([1.5 + 0.1 * k, 0.7 - 0.2 * t], [-0.4, 0.3 * k, -2.0 + t]) for t in range(T)] for k in range(K)]
    expected = scalar_algorithm1(S0, theta0, real, mode, 2.0, T, zeta, rates.values(), weights, overfit, gap)

    def image(values):
        return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)

    val_batches = None
    if overfit is not None:
        val_batches = [[(image(overfit(k, t)), torch.tensor([0, 1])) for t in range(T)] for k in range(K)]
    S, losses = ref.algorithm1(
        image(S0),
        torch.tensor([0, 1]),
        [[vector(v, -v).reshape(2, 1), vector(a, -a)] for v, a in theta0],
        [[[image(batch) for batch in by_class] for by_class in by_t] for by_t in real],
        mode,
        D3,
        None,
        T,
        zeta,
        **rates,
        weights=weights,
        val_batches=val_batches,
        gap=gap,
    )
    return S.flatten().tolist(), losses, expected


@pytest.mark.parametrize("mode", ["intra", "inter", "interleaved", "multi"])
def test_algorithm1_against_its_scalar_version(mode):
    images, losses, (expected_S, expected_losses) = scalar_case(mode)
    assert len(losses) == 9  # K * T
    assert losses == pytest.approx(expected_losses, rel=1e-11)
    assert images == pytest.approx(expected_S, rel=1e-11)


@pytest.mark.parametrize("gap", [None, 0.1])
def test_algorithm1_until_overfit_against_its_scalar_version(gap):
    def overfit(k, t):
        return 0.6 - 0.3 * k, 0.5 * t - 0.4

    images, losses, (expected_S, expected_losses) = scalar_case("multi", overfit=overfit, gap=gap, zeta=lambda t: 20)
    assert losses == pytest.approx(expected_losses, rel=1e-11)
    assert images == pytest.approx(expected_S, rel=1e-11)
    never, *_ = scalar_case("multi", zeta=lambda t: 20)
    assert images != pytest.approx(never, rel=1e-3)  # it did stop early
    constant, *_ = scalar_case("multi", overfit=lambda k, t: overfit(0, 0), gap=gap, zeta=lambda t: 20)
    assert images != pytest.approx(constant, rel=1e-3)  # and each validation batch was looked at
    if gap is not None:
        by_rise, *_ = scalar_case("multi", overfit=overfit, zeta=lambda t: 20)
        assert images != pytest.approx(by_rise, rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"lr_S": 0.31},
        {"momentum_S": 0.0},
        {"lr_theta": 0.5},
        {"momentum_theta": 0.0},
        {"weights": (0.5, 0.5)},
    ],
)
def test_every_rate_of_algorithm1_counts(change):
    images, _, _ = scalar_case("multi")
    changed, _, (expected_S, _) = scalar_case("multi", **change)
    assert changed == pytest.approx(expected_S, rel=1e-11)
    assert images != pytest.approx(changed, rel=1e-4)


def test_two_updates_of_S_by_hand():
    # theta = 0 at both k, so p = 1/2, q_0(x) = -x/2, q_1(x) = x/2, D_c = 2 (s - r)^2 / 4, dD_c/ds = s - r.
    # Class 0: s = 2, r = 1. g = 1; s = 2 - 0.1 = 1.9. g = 0.5 * 1 + 0.9 = 1.4; s = 1.9 - 0.14 = 1.76.
    # Class 1: s = -1, r = 3. g = -4; s = -0.6. g = -2 - 3.6 = -5.6; s = -0.04.
    # Losses: (1 + 16) / 2 = 8.5, then (0.81 + 12.96) / 2 = 6.885.
    # S's momentum crosses from one k to the next.
    S0, labels = vector(2, -1).reshape(2, 1, 1, 1), torch.tensor([0, 1])
    batches = [vector(1).reshape(1, 1, 1, 1), vector(3).reshape(1, 1, 1, 1)]
    rates = (0.1, 0.5, 0.01, 0.5)
    S, losses = ref.algorithm1(
        S0, labels, [ZERO, ZERO], [[batches], [batches]], "intra", D3, None, 1, ref.zeta_adaptive, *rates
    )
    assert losses == pytest.approx([8.5, 6.885], rel=1e-14)
    assert S.flatten().tolist() == pytest.approx([1.76, -0.04], rel=1e-13)
    assert S0.flatten().tolist() == [2, -1]  # the caller's images are left alone


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("mode", ["intra", "inter", "multi"])
def test_one_iteration_is_a_step_down_the_matching_loss(mode, depth):
    generator = torch.Generator().manual_seed(17)
    theta = convnet_theta(generator, 1, 3, depth, 6 if depth == 0 else 3, 2)
    S0, labels = normal(generator, 4, 1, 2, 3), torch.tensor([0, 0, 1, 1])
    batches = [normal(generator, 3, 1, 2, 3), normal(generator, 2, 1, 2, 3)]
    terms = [(1.0, "d1"), (0.5, "d2")]

    def value(S):  # Eq. 4 to 6 once more, the class batches cut out by hand
        gS = [ref.gradient(theta, S[:2], labels[:2]), ref.gradient(theta, S[2:], labels[2:])]
        gT = [ref.gradient(theta, batch, torch.full((len(batch),), c)) for c, batch in enumerate(batches)]
        intra = ref.distance(terms, gS[0], gT[0]) + ref.distance(terms, gS[1], gT[1])
        mean_S = [(g0 + g1) / 2 for g0, g1 in zip(*gS, strict=True)]
        mean_T = [(g0 + g1) / 2 for g0, g1 in zip(*gT, strict=True)]
        inter = 2 * ref.distance(terms, mean_S, mean_T)
        return {"intra": intra, "inter": inter, "multi": intra + inter}[mode]

    S, losses = ref.algorithm1(
        S0, labels, [theta], [[batches]], mode, terms, None, 1, lambda t: 1, 0.1, 0.5, 0.01, 0.5, depth=depth
    )
    assert losses == pytest.approx([float(value(S0))], rel=1e-12)
    assert_close((S0 - S) / 0.1, finite_difference(value, S0), 1e-6)


def test_algorithm1_refuses_more_images_than_one_step_takes():
    images = torch.zeros(257, 1, 1, 1).double()
    with pytest.raises(ValueError, match="at most 256"):
        ref.algorithm1(images, None, [], [], "multi", D1, None, 1, None, 0.1, 0.5, 0.01, 0.5)
