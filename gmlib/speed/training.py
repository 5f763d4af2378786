"""Training on S: one pass (line 12 of Algorithm 1), and phase 2's training from scratch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks import has_batchnorm
from ..runtime import in_time, to_device
from .forward import Forward, fast_forward
from .memory import Memory
from .passes import pass_size
from .recording import Runner

Step = Callable[[Tensor, Tensor], None]  # (images, labels)
Networks = TypeVar("Networks", bound=nn.Module | Sequence[nn.Module])


class Training(NamedTuple):
    """All that changes while `fit` trains networks side by side. Network i has the generator rngs[i]."""

    networks: Sequence[nn.Module]
    optimiser: torch.optim.Optimizer
    rngs: Sequence[torch.Generator]


class Kept(Protocol):
    """Where `fit` keeps networks in training, such as a `gmlib.checkpoint.TrainingCheckpoint`."""

    def restore(self, training: Training) -> int:
        """Set it to what is kept. Returns the number of finished epochs."""

    def keep(self, epochs: int, training: Training) -> None:
        """Keep it after so many epochs."""


def train_one_pass(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    batch: int,
    rng: torch.Generator,
    runner: Runner | None = None,
) -> None:
    """Train for one epoch in shuffled mini-batches with the cross-entropy loss: one "step" of theta in Algorithm 1.

    If S fits in one batch this is a single gradient step. The gradient of a mini-batch is summed over parts if that
    is faster (`pass_size`) or memory runs out, with the same result to rounding. BatchNorm layers are put in train
    mode: they normalise by the batch, which is then not split, and update their running statistics.

    Parameters
    ----------
    network : nn.Module
    optimiser : torch.optim.Optimizer
    x : Tensor
        (n, channels, height, width).
    y : Tensor
        (n,) int64.
    batch : int
        Images in a mini-batch.
    rng : torch.Generator
        Shuffles.
    runner : Runner, optional
        Records the step on CUDA. The network and the optimiser must stay the same objects for the whole run.

    Source
    ------
    Line 12 of Algorithm 1.
    """
    network.train()
    memory = runner.memory_theta if runner and runner.memory_theta else _memory_for(network, batch)
    step: Step = partial(_step, [fast_forward(network, x)], optimiser, memory, pass_size(network, x), ())
    if runner is None:
        _one_pass(step, memory, x[None], y, batch, [rng], has_batchnorm(network))
        return
    runner.memory_theta = memory

    def recorded(*inputs: Tensor) -> None:
        runner.record(("theta", memory.chunk), step, *inputs)

    _one_pass(recorded, memory, x[None], y, batch, [rng], has_batchnorm(network))


def _memory_for(network: nn.Module, batch: int) -> Memory:
    return Memory(largest=1 if has_batchnorm(network) else batch)  # BatchNorm needs the batch whole


def _one_pass(
    step: Step,
    memory: Memory,
    x: Tensor,
    y: Tensor,
    batch: int,
    rngs: Sequence[torch.Generator],
    whole: bool,
    before_step: Callable[[], None] | None = None,
) -> None:
    """Call ``step`` on shuffled mini-batches. Network j has its own rngs[j] and images x[j]; y (n,) is shared.

    If ``whole``, a last mini-batch of one image joins the one before, because BatchNorm cannot normalise it.
    """
    order = to_device(torch.stack([torch.randperm(len(y), generator=rng) for rng in rngs]), y.device)
    j = torch.arange(len(rngs), device=y.device)[:, None]
    batches = list(order.split(batch, 1))
    if whole and len(batches) > 1 and batches[-1].shape[1] == 1:
        batches[-2:] = [torch.cat(batches[-2:], 1)]
    for chosen in in_time(batches):
        if before_step:
            before_step()
        images, labels = x[j, chosen], y[chosen]
        for attempt in memory:
            with attempt:
                step(images, labels)


def _step(
    forwards: Sequence[Forward],
    optimiser: torch.optim.Optimizer,
    memory: Memory,
    fitting: int | None,
    streams: Sequence[torch.cuda.Stream],
    x: Tensor,
    y: Tensor,
) -> None:
    """One gradient step of every network on its own mini-batch: images x (networks, b, ...), labels y (networks, b).

    ``forwards`` are the results of `fast_forward`, ``fitting`` that of `pass_size`, ``streams`` that of `_streams`.
    """
    batch = y.shape[1]
    size = min(memory.chunk or batch, fitting or batch)

    def backward(forward: Forward, images: Tensor, labels: Tensor) -> None:
        if size >= batch:
            F.cross_entropy(forward(images), labels).backward()
            return
        for part, part_labels in in_time(zip(images.split(size), labels.split(size), strict=True)):
            loss = F.cross_entropy(forward(part), part_labels) * (len(part) / batch)
            loss.backward()

    optimiser.zero_grad()
    _run_on_streams(streams, [partial(backward, *own) for own in zip(forwards, x, y, strict=True)])
    optimiser.step()


def _run_on_streams(streams: Sequence[torch.cuda.Stream], work: Sequence[Callable[[], None]]) -> None:
    """Call every function, on the CUDA streams in rotation. Without streams, call one after another."""
    if not streams:
        for function in work:
            function()
        return
    current = torch.cuda.current_stream(streams[0].device)
    for stream in streams:
        stream.wait_stream(current)
    try:
        for i, function in enumerate(work):
            with torch.cuda.stream(streams[i % len(streams)]):
                function()
    finally:  # also after an error: a recording must join all its streams
        for stream in streams:
            current.wait_stream(stream)


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, fused=True),
    "adam": lambda parameters, lr, momentum, weight_decay, **options: torch.optim.Adam(
        parameters, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True, **options
    ),
}
# A recorded step must read the learning rate and the number of steps on the device.
RECORDABLE_OPTIONS: dict[str, dict[str, bool]] = {"sgd": {}, "adam": {"capturable": True}}
MAX_STREAMS = 16  # CUDA streams for networks that are trained side by side


def fit(
    network: Networks,
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
    before_step: Callable[[], None] | None = None,
    checkpoint: Kept | None = None,
) -> Networks:
    """Train networks in place by the protocol of phase 2: the learning rate is divided by 10 after half the epochs.

    If memory runs out, the passes of a single network are split. With several networks the error is raised, so that
    the caller can start again with fewer.

    Parameters
    ----------
    network : nn.Module or sequence of nn.Module
        One network, or several of the same architecture. They are trained side by side, each as if it were alone.
    x : Tensor
        (n, channels, height, width).
    y : Tensor
        (n,) int64.
    epochs : int
    rng : torch.Generator or sequence of torch.Generator
        Shuffles; one generator per network.
    optimiser : str
        A name in ``OPTIMISERS``.
    lr, momentum, weight_decay : float
        For "adam" the momentum is its first beta.
    batch : int
        Images in a mini-batch.
    vary : callable, optional
        x -> a varied copy of it, (networks, n, channels, height, width) for several networks. Called once per epoch.
    as_recorded : callable, optional
        From `step_recorder`: turns a step into a recorded one. On CUDA several networks then run on several streams.
    before_step : callable, optional
        Called before each step. An error that it raises ends the training.
    checkpoint : Kept, optional
        Called before the first epoch and after each. On a CPU a training that continues ends with the same bits.

    Returns
    -------
    nn.Module or sequence of nn.Module
        ``network``.

    Source
    ------
    Section 4.1.
    """
    networks = [network] if isinstance(network, nn.Module) else list(network)
    rngs = [rng] if isinstance(rng, torch.Generator) else list(rng)
    memory = _memory_for(networks[0], batch) if len(networks) == 1 else Memory(largest=1)
    parameters = [p for each in networks for p in each.parameters()]
    options = RECORDABLE_OPTIONS[optimiser] if as_recorded else {}
    optimisation = OPTIMISERS[optimiser](parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, **options)
    (group,) = optimisation.param_groups
    if as_recorded:
        group["lr"] = torch.tensor(lr, device=x.device)
    for each in networks:
        each.train()
    fitting = pass_size(networks[0], x)
    streams = _streams(len(networks), x, min(batch, len(x)), fitting)
    forwards = [fast_forward(each, x) for each in networks]
    step: Step = partial(_step, forwards, optimisation, memory, fitting, streams)
    if as_recorded:
        step = as_recorded(step)
    training = Training(networks, optimisation, rngs)
    first = checkpoint.restore(training) if checkpoint else 0
    for epoch in range(first, epochs):
        if epoch == max(first, epochs // 2):
            if as_recorded:
                group["lr"].fill_(lr / 10)
            else:
                group["lr"] = lr / 10
        varied = (x if vary is None else vary(x)).expand(len(networks), *x.shape)
        _one_pass(step, memory, varied, y, batch, rngs, has_batchnorm(networks[0]), before_step)
        if checkpoint:
            checkpoint.keep(epoch + 1, training)
    optimisation.zero_grad()  # gradients of a recorded step would keep its memory
    return network


def _streams(n_networks: int, x: Tensor, batch: int, fitting: int | None) -> list[torch.cuda.Stream]:
    """One CUDA stream per network, but only as many as fit into memory with ``batch`` images each."""
    if x.device.type != "cuda":
        return []
    n = min(MAX_STREAMS, n_networks, (fitting or MAX_STREAMS * batch) // batch)
    return [torch.cuda.Stream(x.device) for _ in range(n)] if n > 1 else []
