"""Gradient matching and evaluation as they are usually written: the implementation that the library is compared with.

Algorithm 1 and the training of Section 4.1 in the straightforward PyTorch of published research code: a loop over
classes with one graph each, mini-batches by permuted index lists, distances layer by layer, a DataLoader for every
step of theta with loss and accuracy read on the host, networks evaluated one after another, images varied one by
one on the CPU. Nothing here is tuned for speed or made slow. Nothing is imported from gmlib: a network is any
nn.Module.

DC: class by class, d1, fixed steps (Eq. 4, 8). MDA: both levels, d1 + d2, the steps of Eq. 12 (Eq. 6, 9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

METHODS = ("DC", "MDA")
BATCH = 256  # images in a mini-batch of the steps of theta and of the test

# ---- phase 1: matching ------------------------------------------------------------------------------------


def indices_by_class(labels: Tensor) -> list[list[int]]:
    """The indices of the images of each class. labels: (N,) integers."""
    indices: list[list[int]] = [[] for _ in range(int(labels.max()) + 1)]
    for i, c in enumerate(labels.tolist()):
        indices[c].append(i)
    return indices


def batch_of_class(images: Tensor, indices: list[int], n: int, rng: np.random.Generator) -> Tensor:
    """n of the images at ``indices``, drawn without replacement; all if there are fewer."""
    return images[rng.permutation(indices)[:n]]


def class_gradient(network: nn.Module, x: Tensor, c: int, create_graph: bool = False) -> Sequence[Tensor]:
    """The gradient of the mean loss of x, all of class c: one tensor per parameter."""
    y = torch.full((len(x),), c, device=x.device)
    loss = F.cross_entropy(network(x), y)
    return torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)


def distance(gS: Sequence[Tensor], gT: Sequence[Tensor], magnitude: bool) -> Tensor:
    """d1, or d1 + d2 with ``magnitude``, summed over rows and layers, without biases and norm parameters."""
    total = torch.zeros((), dtype=gS[0].dtype, device=gS[0].device)
    for a, b in zip(gS, gT, strict=True):
        if a.dim() == 1:
            continue
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        total = total + (1 - F.cosine_similarity(a, b, dim=1)).sum()
        if magnitude:
            total = total + (a - b).norm(dim=1).sum()
    return total


def matching_loss(
    method: str,
    network: nn.Module,
    S: Tensor,
    images: Tensor,
    indices: list[list[int]],
    batch: int,
    rng: np.random.Generator,
) -> Tensor:
    """Lines 5-8 of Algorithm 1.

    Parameters
    ----------
    S : Tensor
        (C*ipc, channels, height, width), sorted by class.
    images : Tensor
        Those of T, on the same device.
    indices : list of list of int
        From `indices_by_class`.
    batch : int
        Real images per class.
    """
    C, multi = len(indices), method == "MDA"
    ipc = len(S) // C
    loss = torch.zeros((), dtype=S.dtype, device=S.device)
    every_gS, every_gT = [], []
    for c in range(C):
        gT = class_gradient(network, batch_of_class(images, indices[c], batch, rng), c)
        gS = class_gradient(network, S[c * ipc : (c + 1) * ipc], c, create_graph=True)
        loss = loss + distance(gS, gT, magnitude=multi)
        if multi:
            every_gS.append(gS)
            every_gT.append(gT)
    if multi:
        mean_gS = [sum(layer) / C for layer in zip(*every_gS, strict=True)]
        mean_gT = [sum(layer) / C for layer in zip(*every_gT, strict=True)]
        loss = loss + C * distance(mean_gS, mean_gT, magnitude=True)
    return loss


def update(method: str, network: nn.Module, S: Tensor, optimiser_S: torch.optim.Optimizer, *batches) -> float:
    """Lines 5-9: update S in place and return the matching loss. batches: the last arguments of `matching_loss`."""
    loss = matching_loss(method, network, S, *batches)
    optimiser_S.zero_grad()
    loss.backward()
    optimiser_S.step()
    return loss.item()


def epoch(
    network: nn.Module,
    loader: DataLoader,
    optimiser: torch.optim.Optimizer,
    vary: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Train for one pass over ``loader``; return mean loss and accuracy in percent."""
    device = next(network.parameters()).device
    network.train()
    loss_sum, right, seen = 0.0, 0, 0
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        if vary is not None:
            x = vary(x)
        scores = network(x)
        loss = F.cross_entropy(scores, y)
        loss_sum += loss.item() * len(y)
        right += int((scores.detach().argmax(1).cpu().numpy() == y.cpu().numpy()).sum())
        seen += len(y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss_sum / seen, 100 * right / seen


def steps(method: str, t: int, zeta: int) -> int:
    """Steps of theta after update t of S: zeta for DC, Eq. 12 for MDA."""
    if method == "DC":
        return zeta
    if t < 4:
        return 50 - 10 * t
    return 10 if t < 10 else 5


def outer_iteration(
    method: str,
    network: nn.Module,
    S: Tensor,
    optimiser_S: torch.optim.Optimizer,
    images: Tensor,
    indices: list[list[int]],
    *,
    T: int,
    zeta: int,
    batch: int,
    rng: np.random.Generator,
    lr: float = 0.01,
    momentum: float = 0.5,
) -> float:
    """Lines 3-13 with a fresh network: update S in place T times and return the mean matching loss."""
    C = len(indices)
    labels = torch.arange(C, device=S.device).repeat_interleave(len(S) // C)
    optimiser_theta = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum)
    loss_sum = 0.0
    for t in range(T):
        loss_sum += update(method, network, S, optimiser_S, images, indices, batch, rng)
        if t == T - 1:
            break
        loader = DataLoader(TensorDataset(S.detach().clone(), labels), batch_size=BATCH, shuffle=True, num_workers=0)
        for _ in range(steps(method, t, zeta)):
            epoch(network, loader, optimiser_theta)
    return loss_sum / T


# ---- phase 2: evaluation ----------------------------------------------------------------------------------


def train(
    network: nn.Module,
    S: Tensor,
    labels: Tensor,
    epochs: int,
    vary: Callable[[Tensor], Tensor] | None = None,
    lr: float = 0.01,
) -> None:
    """Train ``network`` on S by SGD, momentum 0.9, weight decay 5e-4; divide the rate by 10 after half the epochs."""
    loader = DataLoader(TensorDataset(S, labels), batch_size=BATCH, shuffle=True, num_workers=0)
    optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for e in range(epochs):
        if e == epochs // 2:
            optimiser.param_groups[0]["lr"] = lr / 10
        epoch(network, loader, optimiser, vary)


def accuracy(network: nn.Module, test: TensorDataset) -> float:
    """Percent of the test images that ``network`` classifies correctly."""
    device = next(network.parameters()).device
    network.eval()
    right = 0
    with torch.no_grad():
        for x, y in DataLoader(test, batch_size=BATCH, shuffle=False, num_workers=0):
            scores = network(x.to(device))
            right += int((scores.argmax(1).cpu().numpy() == y.cpu().numpy()).sum())
    return 100 * right / len(test)


def evaluate(
    networks: Iterable[nn.Module],
    S: Tensor,
    labels: Tensor,
    test: TensorDataset,
    epochs: int,
    vary: Callable[[Tensor], Tensor] | None = None,
) -> list[float]:
    """Train each network on S and test it, one after another. Accuracies in percent."""
    found = []
    for network in networks:
        train(network, S, labels, epochs, vary)
        found.append(accuracy(network, test))
    return found


# ---- phase 2: varied images -------------------------------------------------------------------------------
# One image at a time, in numpy: (channels, height, width). fill: (channels, 1, 1), the value outside the image.

MAX_SHIFT = 4  # pixels
MAX_STRETCH = 0.2  # of each side
MAX_DEGREES = 45


def shift(image: np.ndarray, down: int, right: int, fill: np.ndarray) -> np.ndarray:
    """Shift by at most MAX_SHIFT whole pixels."""
    channels, height, width = image.shape
    padded = np.empty((channels, height + 2 * MAX_SHIFT, width + 2 * MAX_SHIFT), image.dtype)
    padded[:] = fill
    padded[:, MAX_SHIFT : MAX_SHIFT + height, MAX_SHIFT : MAX_SHIFT + width] = image
    top, left = MAX_SHIFT - down, MAX_SHIFT - right
    return padded[:, top : top + height, left : left + width]


def middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut out the middle."""
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def stretch(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize to ``height`` and ``width``, in the middle of an image of the old size, with 0 around."""
    channels, *sides = image.shape
    resized = F.interpolate(torch.from_numpy(image)[None], (height, width))[0].numpy()
    side = max(height, width, *sides)
    canvas = np.zeros((channels, side, side), image.dtype)
    middle(canvas, height, width)[:] = resized
    return middle(canvas, *sides)


def turn(image: np.ndarray, degrees: int, fill: np.ndarray) -> np.ndarray:
    """Turn anticlockwise about the centre."""
    turned = ndimage.rotate(image, degrees, axes=(1, 2), cval=float(fill.mean()))
    return middle(turned, *image.shape[1:])


def augmented(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary each image of x (n, channels, height, width) by shift, stretch or turn, the operations for MNIST."""
    images = x.cpu().numpy()
    fill = images.mean(axis=(0, 2, 3)).reshape(-1, 1, 1)
    varied = np.empty_like(images)
    for i, image in enumerate(images):
        operation = rng.choice(["shift", "stretch", "turn"])
        if operation == "shift":
            varied[i] = shift(image, *rng.integers(1 - MAX_SHIFT, MAX_SHIFT + 1, 2), fill)
        elif operation == "stretch":
            factors = rng.uniform(1 - MAX_STRETCH, 1 + MAX_STRETCH, 2)
            varied[i] = stretch(image, *(int(f * side) for f, side in zip(factors, image.shape[1:], strict=True)))
        else:
            varied[i] = turn(image, int(rng.integers(-MAX_DEGREES, MAX_DEGREES)), fill)
    return torch.from_numpy(varied).to(x.device)
