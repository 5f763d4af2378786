"""The paper once more, slowly: Algorithm 1 and Equations 3-12 in plain loops and float64.

This file is what the library is tested against. It is written from the paper's text (and from the
published facts its text leaves out), class by class and row by row, and it shares no line with the
library. Speed does not count here; being able to check each line against the paper does.

Nothing is drawn at random: initial values and mini-batches are arguments.

Conventions
-----------
theta : list of float64 tensors, ``[conv.weight, conv.bias, norm.weight, norm.bias]`` for each block,
    then ``[linear.weight, linear.bias]``. With no block (depth 0) the network is linear.
gS, gT : list of tensors, one gradient per parameter, in theta's order.
terms : list of (weight, name) with a name among "d1" ... "d4": ``[(1.0, "d1"), (0.1, "d2")]`` is
    d1 + 0.1 d2.
"""

import torch
import torch.nn.functional as F

# --------------------------------------------------------------------------------------------------
# How we match: distances (Section 3.2, Table 2)
# --------------------------------------------------------------------------------------------------

COSINE_EPS = 1e-8  # the smallest norm that d1 divides by (the framework's cosine similarity)
NORM_EPS = 1e-5  # added to the variance inside instance norm


def dot(a, b):
    """a . b, two vectors of equal length."""
    return (a * b).sum()


def norm(a):
    """|a|, its derivative at a = 0 taken as 0 (the square root alone would give NaN there)."""
    squared = dot(a, a)
    if squared.item() == 0.0:
        return squared  # worth 0, and its derivative 2a is 0 too
    return torch.sqrt(squared)


def at_least(value, floor):
    """max(value, floor); at the floor the result is a constant."""
    if value.item() < floor:
        return torch.tensor(floor, dtype=torch.float64)
    return value


def d1(a, b):
    """1 - a . b / (|a| |b|), each norm at least 1e-8 (Table 2, Eq. 8)."""
    return 1.0 - dot(a, b) / (at_least(norm(a), COSINE_EPS) * at_least(norm(b), COSINE_EPS))


def d2(a, b):
    """|a - b| (Table 2, second half of Eq. 9)."""
    return norm(a - b)


def d3(a, b):
    """|a - b|^2 (Table 2)."""
    return dot(a - b, a - b)


def d4(a, b):
    """|a - b|^2 / len(a) (Table 2)."""
    return d3(a, b) / len(a)


DISTANCES = {"d1": d1, "d2": d2, "d3": d3, "d4": d4}


def rows(g):
    """The vectors A_i of one parameter's gradient (Eq. 8), one per output channel; none for biases."""
    if g.dim() == 1:
        return []
    if g.dim() not in (2, 3, 4):
        raise ValueError(f"a gradient of {g.dim()} dimensions has no rows in the paper")
    return [g[i].reshape(-1) for i in range(g.shape[0])]


def layer_distance(terms, A, B):
    """d(A, B) of one layer: the sum over rows of the weighted sum of distances (Eq. 8, Eq. 9)."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(rows(A), rows(B), strict=True):
        for weight, name in terms:
            total = total + weight * DISTANCES[name](a, b)
    return total


def distance(terms, gS, gT):
    """D(gS, gT): the sum over layers (Eq. 7)."""
    total = torch.zeros((), dtype=torch.float64)
    for A, B in zip(gS, gT, strict=True):
        total = total + layer_distance(terms, A, B)
    return total


# --------------------------------------------------------------------------------------------------
# The network and its loss
# --------------------------------------------------------------------------------------------------


def instance_norm(x, weight, bias):
    """Each channel of each image to mean 0 and (biased) variance 1, then scaled and shifted by channel."""
    n_channels = x.shape[1]
    mean = x.mean(dim=(2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(2, 3), keepdim=True)
    normalised = (x - mean) / torch.sqrt(variance + NORM_EPS)
    return normalised * weight.reshape(1, n_channels, 1, 1) + bias.reshape(1, n_channels, 1, 1)


def convnet(theta, x, depth=None):
    """The scores of ConvNet.

    Parameters
    ----------
    theta : list of 4 * depth + 2 float64 tensors (see the top of this file).
    x : (n, channels, height, width) float64.
    depth : int, optional
        Number of blocks; read off theta when None.

    Returns
    -------
    (n, C) float64
    """
    depth = (len(theta) - 2) // 4 if depth is None else depth
    if len(theta) != 4 * depth + 2:
        raise ValueError(f"{len(theta)} parameters do not make a ConvNet of {depth} blocks")
    for block in range(depth):
        conv_weight, conv_bias, norm_weight, norm_bias = theta[4 * block : 4 * block + 4]
        padding = 3 if tuple(x.shape[1:]) == (1, 28, 28) and block == 0 else 1  # grey 28x28 becomes 32x32
        x = F.conv2d(x, conv_weight, conv_bias, padding=padding)
        x = instance_norm(x, norm_weight, norm_bias)
        x = torch.relu(x)
        x = F.avg_pool2d(x, 2)
    linear_weight, linear_bias = theta[-2:]
    return x.reshape(x.shape[0], -1) @ linear_weight.T + linear_bias


def cross_entropy(scores, y):
    """The mean over the batch of log(sum_j exp(z_j)) - z_y; scores (n, C), y (n,) integers."""
    total = torch.zeros((), dtype=torch.float64)
    for z, label in zip(scores, y, strict=True):
        total = total + torch.logsumexp(z, dim=0) - z[int(label)]
    return total / len(y)


def loss(theta, x, y, depth=None):
    """L((x, y), theta), the mean loss of a batch (below Eq. 1)."""
    return cross_entropy(convnet(theta, x, depth), y)


def gradient(theta, x, y, create_graph=False, depth=None):
    """The gradient of the loss in theta, one tensor per parameter; differentiable in x with create_graph."""
    theta = [p.detach().requires_grad_(True) for p in theta]
    return list(torch.autograd.grad(loss(theta, x, y, depth), theta, create_graph=create_graph))


# --------------------------------------------------------------------------------------------------
# What we match: the matching loss (Section 3.1)
# --------------------------------------------------------------------------------------------------


def union_gradient(gradients_by_class, weights=None):
    """sum_c w_c g_c / sum_c w_c, parameter by parameter (Eq. 5).

    weights are the batch sizes |B_c| or any class weights; None weighs all classes alike.
    """
    C = len(gradients_by_class)
    weights = [1.0 / C] * C if weights is None else [float(w) for w in weights]
    if len(weights) != C:
        raise ValueError(f"{len(weights)} weights for {C} classes")
    union = []
    for parameter in range(len(gradients_by_class[0])):
        total = torch.zeros((), dtype=torch.float64)
        for c in range(C):
            total = total + weights[c] * gradients_by_class[c][parameter]
        union.append(total / sum(weights))
    return union


def matching_loss(mode, terms, gS_by_class, gT_by_class, lam=None, k=0, weights=None):
    """The matching loss of one inner iteration.

    Parameters
    ----------
    mode : "intra" (Eq. 4), "inter" (the second part of Eq. 6 alone), "multi" (Eq. 6), or
        "interleaved" (footnote 3: intra at even k, inter at odd k).
    terms : the distance (see the top of this file).
    gS_by_class, gT_by_class : C gradients each.
    lam : float; None means C.
    k : int, outer iteration, read by "interleaved" only.
    weights : (C,) class weights for both union gradients (Eq. 5); None means 1/C each. The sum over
        classes in Eq. 4 and Eq. 6 stays unweighted.
    """
    C = len(gS_by_class)
    lam = C if lam is None else lam
    if mode == "interleaved":
        mode = "intra" if k % 2 == 0 else "inter"
    if mode not in ("intra", "inter", "multi"):
        raise ValueError(f"unknown mode {mode!r}; known: intra, inter, interleaved, multi")

    total = torch.zeros((), dtype=torch.float64)
    if mode in ("intra", "multi"):
        for gS, gT in zip(gS_by_class, gT_by_class, strict=True):
            total = total + distance(terms, gS, gT)
    if mode in ("inter", "multi"):
        total = total + lam * distance(
            terms, union_gradient(gS_by_class, weights), union_gradient(gT_by_class, weights)
        )
    return total


def of_class(S, labels, c):
    """The images of class c, (ipc, channels, height, width), and their labels."""
    chosen = [i for i in range(len(S)) if int(labels[i]) == c]
    return torch.stack([S[i] for i in chosen]), torch.tensor([c] * len(chosen))


def matching_gradient(theta, S, labels, real_by_class, mode, terms, lam=None, k=0, weights=None, depth=None):
    """The matching loss at theta and its gradient in the synthetic images.

    Parameters
    ----------
    S : (n, channels, height, width) float64, the synthetic images of all classes, in any order; labels (n,).
    real_by_class : C tensors (n_c, channels, height, width), the real mini-batch of each class.

    Returns
    -------
    (float, tensor shaped like S)
    """
    S = S.detach().requires_grad_(True)
    gS_by_class, gT_by_class = [], []
    for c, real in enumerate(real_by_class):
        x, y = of_class(S, labels, c)
        gS_by_class.append(gradient(theta, x, y, create_graph=True, depth=depth))
        gT_by_class.append(gradient(theta, real, torch.tensor([c] * len(real)), depth=depth))
    value = matching_loss(mode, terms, gS_by_class, gT_by_class, lam, k, weights)
    (dS,) = torch.autograd.grad(value, S)
    return float(value.detach()), dS


# --------------------------------------------------------------------------------------------------
# Where we match: how far theta moves between two updates of S (Section 3.3, Section 4.4)
# --------------------------------------------------------------------------------------------------

FIXED = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # ipc: (T, zeta)


def zeta_adaptive(t):
    """zeta_theta(t), Eq. 12."""
    if t < 0:
        raise ValueError(f"inner iterations count from 0, not {t}")
    if t < 4:
        return 50 - 10 * t
    if t < 10:
        return 10
    return 5


def steps_per_outer_iteration(where, T, zeta=None):
    """Steps of theta in one outer iteration; none follow the last update of S, so t ends at T - 2."""
    steps = 0
    for t in range(T - 1):
        if where == "fixed":
            steps += zeta
        elif where == "adaptive":
            steps += zeta_adaptive(t)
        else:
            raise ValueError(f"unknown schedule {where!r}; known: fixed, adaptive")
    return steps


def sgd_step(parameters, gradients, buffers, lr, momentum):
    """One SGD step: buffer = momentum * buffer + g (the first time: g), p = p - lr * buffer.

    buffers is None before the first step. Returns the new parameters and the new buffers; no input changes.
    """
    new_parameters, new_buffers = [], []
    for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
        buffer = g if buffers is None else momentum * buffers[i] + g
        new_buffers.append(buffer.detach())
        new_parameters.append((p - lr * buffer).detach())
    return new_parameters, new_buffers


def update_theta(theta, buffers, S, labels, n_steps, lr, momentum, depth=None):
    """Eq. 11: n_steps steps of theta on the whole of S. Returns theta and its momentum buffers."""
    for _ in range(n_steps):
        theta, buffers = sgd_step(theta, gradient(theta, S, labels, depth=depth), buffers, lr, momentum)
    return theta, buffers


def update_theta_until_overfit(
    theta, buffers, S, labels, val_images, val_labels, lr, momentum, gap=None, max_steps=50, depth=None
):
    """Step theta on S until it overfits (Section 3.3).

    Without gap: until L(T_val, theta^i) < L(T_val, theta^{i+1}), the first comparison being with the
    loss before any step. With gap: until L(T_val, theta^{i+1}) - L(S, theta^{i+1}) > gap. The step at
    which this is seen is kept, and there are at most max_steps of them.

    Returns
    -------
    theta, buffers, number of steps taken
    """
    before = float(loss(theta, val_images, val_labels, depth))
    for i in range(max_steps):
        theta, buffers = update_theta(theta, buffers, S, labels, 1, lr, momentum, depth)
        after = float(loss(theta, val_images, val_labels, depth))
        if gap is None and before < after:
            return theta, buffers, i + 1
        if gap is not None and after - float(loss(theta, S, labels, depth)) > gap:
            return theta, buffers, i + 1
        before = after
    return theta, buffers, max_steps


# --------------------------------------------------------------------------------------------------
# Algorithm 1
# --------------------------------------------------------------------------------------------------


def algorithm1(
    S0,
    labels,
    theta0_by_k,
    real_batches,
    mode,
    terms,
    lam,
    T,
    zeta_of_t,
    lr_S,
    momentum_S,
    lr_theta,
    momentum_theta,
    weights=None,
    depth=None,
    val_batches=None,
    gap=None,
):
    """Algorithm 1, with the line numbers of the paper.

    Parameters
    ----------
    S0 : (n, channels, height, width) float64, n = C * ipc at most 256 (a step of theta takes the whole of S);
        labels (n,) integers.
    theta0_by_k : K lists of parameters, the initial network of each outer iteration.
    real_batches : ``real_batches[k][t][c]``, (n_c, channels, height, width) float64.
    mode, terms, lam, weights : see matching_loss.
    T : int, inner iterations.
    zeta_of_t : callable, t -> steps of theta after inner iteration t; with val_batches the most steps.
    lr_S, momentum_S, lr_theta, momentum_theta : SGD's rates. S keeps its momentum over the whole run;
        theta's starts afresh with each network.
    val_batches : optional, ``val_batches[k][t]`` = (images, labels): stop the steps of theta on
        overfitting, by the rise of the validation loss or, where gap is given, by the gap.

    Returns
    -------
    S : tensor shaped like S0.
    losses : K * T floats, the matching loss before each update of S.
    """
    if len(S0) > 256:
        raise ValueError(f"{len(S0)} synthetic images do not fit one mini-batch; give at most 256")
    losses = []
    S, S_buffers = S0.detach().clone(), None  # line 1
    for k, theta0 in enumerate(theta0_by_k):  # line 2
        theta, theta_buffers = [p.detach().clone() for p in theta0], None  # line 3
        for t in range(T):  # line 4
            value, dS = matching_gradient(  # lines 5 to 8
                theta, S, labels, real_batches[k][t], mode, terms, lam, k, weights, depth
            )
            losses.append(value)
            (S,), S_buffers = sgd_step([S], [dS], S_buffers, lr_S, momentum_S)  # line 9, Eq. 3
            if t == T - 1:
                break  # the next network starts afresh: theta_T would not be used
            if val_batches is None:
                theta, theta_buffers = update_theta(  # lines 10 to 13
                    theta, theta_buffers, S, labels, zeta_of_t(t), lr_theta, momentum_theta, depth
                )
            else:
                theta, theta_buffers, _ = update_theta_until_overfit(  # lines 10 to 13, Section 3.3
                    theta,
                    theta_buffers,
                    S,
                    labels,
                    *val_batches[k][t],
                    lr_theta,
                    momentum_theta,
                    gap,
                    zeta_of_t(t),
                    depth,
                )
    return S, losses
