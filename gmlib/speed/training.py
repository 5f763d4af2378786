"""Steps of theta: one pass over S (line 12 of Algorithm 1), and phase 2's training from scratch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .memory import Memory
from .passes import memory_for, pass_size
from .recording import Runner

Step = Callable[[Tensor, Tensor], None]  # of images and labels


def train_one_pass(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    batch: int,
    rng: torch.Generator,
    run: Runner | None = None,
) -> None:
    """An epoch over x (n, channels, height, width) and its labels y (n,) in shuffled mini-batches, cross-entropy loss.

    This is one "step" of theta in Algorithm 1 (line 12): a single gradient step while S fits in one batch. BatchNorm layers
    normalise by their batch and update their running statistics, frozen or not before. The gradient of a mini-batch is
    summed up over parts of it, the same to rounding, where a pass is faster in parts (`pass_size`) or memory runs out; not
    with BatchNorm, which needs the batch whole. run: the `Runner` of a run whose network and
    optimiser stay.
    """
    network.train()
    memory = run.memory_theta if run and run.memory_theta else memory_for(network, batch)
    step: Step = partial(_step, [network], optimiser, memory, pass_size(network, x), ())
    if run is None:
        _one_pass(step, memory, x[None], y, batch, [rng])
        return
    run.memory_theta = memory

    def recorded(*inputs: Tensor) -> None:
        run.record(("theta", memory.chunk), step, *inputs)

    _one_pass(recorded, memory, x[None], y, batch, [rng])


def _one_pass(step: Step, memory: Memory, x: Tensor, y: Tensor, batch: int, rngs: Sequence[torch.Generator]) -> None:
    """`step` on shuffled mini-batches, each network's by its generator, of its own images in x (len(rngs), n, ...); y (n,)."""
    order = torch.stack([torch.randperm(len(y), generator=rng) for rng in rngs]).to(y.device, non_blocking=y.is_cuda)
    own = torch.arange(len(rngs), device=y.device)[:, None]
    for chosen in order.split(batch, 1):
        images, labels = x[own, chosen], y[chosen]
        for attempt in memory:
            with attempt:
                step(images, labels)


def _step(
    group: Sequence[nn.Module],
    optimiser: torch.optim.Optimizer,
    memory: Memory,
    fits: int | None,
    streams: Sequence[torch.cuda.Stream],
    x: Tensor,
    y: Tensor,
) -> None:
    """A gradient step of each network on a mini-batch of its own: x (len(group), b, channels, height, width), y (.., b).

    fits: `pass_size`. streams: see `_on_streams`.
    """
    batch = y.shape[1]
    size = min(memory.chunk or batch, fits or batch)

    def backward(network: nn.Module, images: Tensor, labels: Tensor) -> None:
        if size >= batch:
            F.cross_entropy(network(images), labels).backward()
            return
        for part, classes in zip(images.split(size), labels.split(size), strict=True):
            loss = F.cross_entropy(network(part), classes) * (len(part) / batch)
            loss.backward()

    optimiser.zero_grad()
    _on_streams(streams, [partial(backward, *own) for own in zip(group, x, y, strict=True)])
    optimiser.step()


def _on_streams(streams: Sequence[torch.cuda.Stream], work: Sequence[Callable[[], None]]) -> None:
    """Call each function: one after the other, or handed out in turn to CUDA streams, between which a device shares itself."""
    if not streams:
        for each in work:
            each()
        return
    here = torch.cuda.current_stream(streams[0].device)
    for stream in streams:
        stream.wait_stream(here)
    try:
        for i, each in enumerate(work):
            with torch.cuda.stream(streams[i % len(streams)]):
                each()
    finally:  # also where memory ran out: what a graph records has to come together again
        for stream in streams:
            here.wait_stream(stream)


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": lambda parameters, lr, momentum, weight_decay, **options: torch.optim.Adam(
        parameters, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay, **options
    ),
}
# What lets a step be recorded: a learning rate and a count of steps that are read on the device.
RECORDABLE: dict[str, dict[str, bool]] = {"sgd": {"fused": True}, "adam": {"fused": True, "capturable": True}}
STREAMS = 16  # at most so many CUDA streams, to which networks that are trained side by side are handed out


def fit(
    network: nn.Module | Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    rng: torch.Generator | Sequence[torch.Generator],
    optimiser: str = "sgd",
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch: int = 256,
    vary: Callable[[Tensor], Tensor] | None = None,
    as_recorded: Callable[[Step], Step] | None = None,
) -> nn.Module | Sequence[nn.Module]:
    """Train `network` in place by the protocol of phase 2: SGD, the learning rate divided by 10 after half the epochs.

    network: one, or several of a kind that are trained side by side, each as it is alone: then rng is a generator for each.
    optimiser: a name in OPTIMISERS; of "adam", momentum is the first beta. vary: maps x (n, channels, height, width) to a varied
    copy of it, for several networks to (networks, n, channels, height, width), anew for each epoch.
    as_recorded: makes of a step one that is recorded and replayed, on CUDA `gradients.Replay`. There several networks take their
    steps on several streams, each by the same operations as alone; so this holds for BatchNorm too, and for every network.

    Where memory runs out, passes of a single network are split; for several the error is raised, to begin again with fewer.
    Returns the network, or networks.
    """
    group, rngs = ([network], [rng]) if isinstance(network, nn.Module) else (network, rng)
    memory = memory_for(group[0], batch) if len(group) == 1 else Memory(largest=1)
    parameters = [p for each in group for p in each.parameters()]
    options = RECORDABLE[optimiser] if as_recorded else {}
    steps = OPTIMISERS[optimiser](parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, **options)
    if as_recorded:
        steps.param_groups[0]["lr"] = torch.tensor(lr, device=x.device)
    for each in group:
        each.train()
    fits = pass_size(group[0], x)
    step = partial(_step, group, steps, memory, fits, _streams(len(group), x, min(batch, len(x)), fits))
    step = as_recorded(step) if as_recorded else step
    for epoch in range(epochs):
        if epoch == epochs // 2:
            if as_recorded:
                steps.param_groups[0]["lr"].fill_(lr / 10)
            else:
                steps.param_groups[0]["lr"] = lr / 10
        varied = (x if vary is None else vary(x)).expand(len(group), *x.shape)
        _one_pass(step, memory, varied, y, batch, rngs)
    steps.zero_grad()  # a recorded step's gradients would keep its memory
    return network


def _streams(n_networks: int, x: Tensor, batch: int, fits: int | None) -> list[torch.cuda.Stream]:
    """As many as there are networks, but so that their passes over `batch` images fit into memory at once; none for one."""
    if x.device.type != "cuda":
        return []
    n = min(STREAMS, n_networks, (fits or STREAMS * batch) // batch)
    return [torch.cuda.Stream(x.device) for _ in range(n)] if n > 1 else []
