"""Steps that are recorded as CUDA graphs once and replayed from then on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .memory import Memory

log = logging.getLogger(__name__)

WARM_UP = 2  # calls before one is recorded: libraries choose their algorithms, optimisers make their buffers


def recordable(device: torch.device) -> bool:
    """Whether steps are recorded on this device."""
    return device.type == "cuda"


class Replay:
    """A function of tensors that on CUDA is recorded as a graph, and from then on replayed: one launch instead of hundreds.

        step = Replay(function, device)
        outputs = step(x, y)  # what function(x, y) returns

    Every call counts: the first two of each shape of inputs run as they are, the third is recorded. `function` returns None, a
    tensor, or tensors in tuples and lists. It may change tensors that it holds (weights, momentum, gradients) in place, and
    these have to stay the same tensors; it must not look at values on the host, or draw random numbers. Its inputs are copied
    into buffers of the graph, and its outputs are buffers too, which the next call overwrites: clone what is kept.

    On another device the function is just called, and so it is, with one line in the log that says why, where it cannot be
    recorded. One thread alone may use the device while a step is recorded.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device):
        self.function, self.device = function, device
        self.possible = recordable(device)
        self.calls: Counter[tuple] = Counter()
        self.graphs: dict[tuple, Graph] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        if not self.possible:
            return self.function(*inputs)
        key = tuple((x.shape, x.dtype) for x in inputs)
        if self.calls[key] < WARM_UP:
            outputs = self._beside(inputs)
            self.calls[key] += 1  # a call that ran out of memory has warmed nothing up
            return outputs
        if key not in self.graphs:
            try:
                self.graphs[key] = Graph(self.function, inputs, self.device)
            except torch.OutOfMemoryError:
                self.graphs.clear()  # with all that they hold; then smaller passes: see `memory.Memory`
                raise
            except RuntimeError as error:
                self.possible = False
                self.graphs.clear()
                why = str(error.__context__ or error).splitlines()[0]
                log.warning("a step cannot be recorded as a CUDA graph (%s): going on without", why)
        return self.graphs[key](*inputs) if self.possible else self.function(*inputs)

    def _beside(self, inputs: Sequence[Tensor]) -> Any:
        """On a stream of its own, as recording wants what comes before it."""
        if self.device.type != "cuda":
            return self.function(*inputs)
        here, beside = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            outputs = self.function(*inputs)
        here.wait_stream(beside)
        return outputs


class Graph:
    """A recorded function, its inputs and its outputs. Recording runs nothing."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor], device: torch.device):
        self.inputs, self.graph = tuple(x.detach().clone() for x in inputs), torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream(device)
        try:
            with torch.cuda.graph(self.graph, stream=torch.cuda.Stream(device)):
                self.outputs = function(*self.inputs)
        finally:
            torch.cuda.set_stream(here)  # where recording fails torch leaves its own stream the current one

    def __call__(self, *inputs: Tensor) -> Any:
        for here, x in zip(self.inputs, inputs, strict=True):
            here.copy_(x)
        self.graph.replay()
        return self.outputs


class Recorder:
    """The steps of one run by name: each recorded by a `Replay` on CUDA, called as it is elsewhere."""

    def __init__(self, device: torch.device):
        self.device, self.possible = device, recordable(device)
        self.steps: dict[Hashable, Replay] = {}

    def __call__(self, name: Hashable, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """function(*inputs). One name stands for one function, which is taken from the first call with it."""
        if not self.possible:
            return function(*inputs)
        try:
            return self.steps.setdefault(name, Replay(function, self.device))(*inputs)
        except torch.OutOfMemoryError:
            self.steps.clear()  # with all that their graphs hold: they are recorded anew
            raise


def step_recorder(device: torch.device) -> Callable[[Callable[..., Any]], Replay] | None:
    """What makes a step a recorded one on this device; None where steps are not recorded."""
    return partial(Replay, device=device) if recordable(device) else None


class Runner:
    """Runs the steps of one run: in smaller passes where memory runs out, and on CUDA recorded once and replayed.

    Parameters
    ----------
    device : torch.device
    largest : int
        Images of one class in a pass at most.
    n_classes : int
        Classes that may share a pass. On a GPU all may be in one pass; on a CPU a pass holds one class at most.
    """

    def __init__(self, device: torch.device, largest: int, n_classes: int):
        self.record = Recorder(device)
        self.memory = Memory(largest * n_classes if recordable(device) else largest)
        self.memory_theta: Memory | None = None  # for the steps of theta, once there is one

    @property
    def chunk(self) -> int | None:
        """Images in one pass at most; None until memory ran out."""
        return self.memory.chunk

    def __call__(self, name: Hashable | None, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """function(*inputs), again in smaller passes where memory runs out. name: see `Recorder`; None: never recorded."""
        for attempt in self.memory:
            with attempt:
                if name is None:
                    found = function(*inputs)
                else:
                    found = self.record((name, self.chunk), function, *inputs)
        return found


@torch.no_grad()
def renew(
    network: nn.Module | None, optimiser: torch.optim.Optimizer | None, fresh: nn.Module, lr: float, momentum: float
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network with the weights of `fresh`, and an SGD optimiser for it without momentum.

    On CUDA the tensors of an earlier network stay and are overwritten, because recorded steps hold them.
    """
    if network is None or optimiser is None or not recordable(next(network.parameters()).device):
        return fresh, torch.optim.SGD(fresh.parameters(), lr=lr, momentum=momentum)
    for here, new in zip(_tensors(network), _tensors(fresh), strict=True):
        here.copy_(new)
    for state in optimiser.state.values():
        if state.get("momentum_buffer") is not None:
            state["momentum_buffer"].zero_()  # the first step then makes it the gradient, as without one
    return network, optimiser


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
