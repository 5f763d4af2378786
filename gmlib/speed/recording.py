"""Steps that are recorded once as CUDA graphs and then replayed.

Recorded steps are our own code because torch.compile has no double backward and torch.cuda.make_graphed_callables
covers only the forward and the first backward pass.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .memory import Memory

log = logging.getLogger(__name__)

WARM_UP = 2  # calls before a step is recorded: libraries choose algorithms, optimisers make their buffers


def recordable(device: torch.device) -> bool:
    """Return True if steps are recorded on this device."""
    return device.type == "cuda"


class Replay:
    """A function of tensors that is recorded as a CUDA graph and then replayed: one launch instead of hundreds.

    For each shape of inputs the first two calls run normally, and the third records the function and replays it. If
    it cannot be recorded, the log says why and all calls run normally, as on other devices. No other thread may use
    the device while a function is recorded.

    Parameters
    ----------
    function : callable
        Tensors -> None, a tensor, or tensors in tuples and lists. It may change tensors that it holds (weights,
        momentum, gradients) in place, but must not replace them, read values on the host or draw random numbers.
    device : torch.device

    Notes
    -----
    Inputs are copied into buffers of the graph. Outputs are buffers too, and the next call overwrites them: clone
    what you keep.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device):
        self.function = function
        self.device = device
        self.can_record = recordable(device)
        self.calls: Counter[tuple] = Counter()
        self.graphs: dict[tuple, Graph] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """Return ``function(*inputs)``."""
        if not self.can_record:
            return self.function(*inputs)
        key = tuple((x.shape, x.dtype) for x in inputs)
        if self.calls[key] < WARM_UP:
            with host_reads(self.device) as reads:
                outputs = self._call_on_new_stream(inputs)
            self.calls[key] += 1  # only now: a call that ran out of memory does not count
            if reads and self.calls[key] == WARM_UP:
                self._give_up(reads[0])  # a recording that fails can leave torch as if it still recorded
            return outputs
        if key not in self.graphs:
            try:
                self.graphs[key] = Graph(self.function, inputs, self.device)
            except torch.OutOfMemoryError:
                self.graphs.clear()  # frees their memory; `memory.Memory` then takes smaller passes
                raise
            except RuntimeError as error:
                self._give_up(str(first_cause(error)))
        return self.graphs[key](*inputs) if self.can_record else self.function(*inputs)

    def _give_up(self, reason: str) -> None:
        self.can_record = False
        self.graphs.clear()
        log.warning("a step cannot be recorded as a CUDA graph and runs normally: %s", reason.splitlines()[0])

    def _call_on_new_stream(self, inputs: Sequence[Tensor]) -> Any:
        """Call the function on a stream of its own, as torch asks for before a recording."""
        if self.device.type != "cuda":
            return self.function(*inputs)
        current = torch.cuda.current_stream(self.device)
        warm_up = torch.cuda.Stream(self.device)
        warm_up.wait_stream(current)
        with torch.cuda.stream(warm_up):
            outputs = self.function(*inputs)
        current.wait_stream(warm_up)
        return outputs


class Graph:
    """A recorded function with its input and output buffers. Recording runs nothing.

    Each graph has memory of its own. If they shared some, a replay could overwrite the outputs of a graph that was
    recorded later, because torch lets these lie where the earlier graph has temporary tensors.

    Parameters are those of `Replay`, and example inputs.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor], device: torch.device):
        self.inputs = tuple(x.detach().clone() for x in inputs)
        self.graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(device)
        collects = gc.isenabled()
        gc.disable()  # collecting an older graph would end the recording
        try:
            with torch.cuda.graph(self.graph, stream=torch.cuda.Stream(device)):
                self.outputs = function(*self.inputs)
        finally:
            torch.cuda.set_stream(current)  # torch leaves its own stream current if recording fails
            if collects:
                gc.enable()

    def __call__(self, *inputs: Tensor) -> Any:
        """Replay the function on ``inputs`` and return the output buffers."""
        for buffer, x in zip(self.inputs, inputs, strict=True):
            buffer.copy_(x)
        self.graph.replay()
        return self.outputs


@contextmanager
def host_reads(device: torch.device) -> Iterator[list[str]]:
    """Collect what torch says of operations that wait for the device, such as ``.item()``, while the block runs.

    Such a step cannot be recorded. Other warnings are given again afterwards.
    """
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            found.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def first_cause(error: BaseException) -> BaseException:
    """Return the error that was raised first. Those that follow while streams and recordings end hide it."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class Later:
    """A scalar on its way to the host. On CUDA the host goes on with its work until it reads the value.

    Parameters
    ----------
    x : Tensor
        A scalar. It may be overwritten afterwards.
    """

    def __init__(self, x: Tensor):
        self.event: torch.cuda.Event | None = None
        self.value = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        self.value.copy_(x, non_blocking=True)
        if x.is_cuda:
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(x.device))

    def read(self) -> float:
        """Return the value, after waiting for it."""
        if self.event is not None:
            self.event.synchronize()
        return self.value.item()


def step_recorder(device: torch.device) -> Callable[[Callable[..., Any]], Replay] | None:
    """Return the function that turns a step into a `Replay` on this device; None if steps are not recorded."""
    return partial(Replay, device=device) if recordable(device) else None


class Runner:
    """Run the steps of one run: in smaller passes when memory runs out, and on CUDA recorded once and replayed.

    Parameters
    ----------
    device : torch.device
    largest : int
        Images of one class in a pass at most.
    n_classes : int
        Classes that may share a pass. On a GPU all may be in one pass; on a CPU a pass holds one class at most.

    Attributes
    ----------
    records_steps : bool
        True if steps are recorded.
    memory : Memory
        The size of passes of `__call__`.
    memory_theta : Memory or None
        The same for the steps of theta, after the first one.
    """

    def __init__(self, device: torch.device, largest: int, n_classes: int):
        self.device = device
        self.records_steps = recordable(device)
        self.steps: dict[Hashable, Replay] = {}
        self.memory = Memory(largest * n_classes if self.records_steps else largest)
        self.memory_theta: Memory | None = None

    @property
    def chunk(self) -> int | None:
        """Images in one pass at most; None until memory ran out."""
        return self.memory.chunk

    def __call__(self, name: Hashable | None, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return ``function(*inputs)``, repeated in smaller passes when memory runs out.

        Parameters
        ----------
        name : hashable or None
            As in `record`; None if the function must not be recorded.
        function : callable
            It reads `chunk`.
        *inputs : Tensor
        """
        for attempt in self.memory:
            with attempt:
                step = function if name is None else partial(self.record, (name, self.chunk), function)
                result = step(*inputs)
        return result

    def record(self, name: Hashable, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return ``function(*inputs)``, on CUDA by a `Replay`. Use one name for one function only."""
        if not self.records_steps:
            return function(*inputs)
        try:
            return self.steps.setdefault(name, Replay(function, self.device))(*inputs)
        except torch.OutOfMemoryError:
            self.steps.clear()  # frees the memory of all graphs; the steps are recorded again
            raise


@torch.no_grad()
def renew(
    network: nn.Module | None, optimiser: torch.optim.Optimizer | None, fresh: nn.Module, lr: float, momentum: float
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a network with the weights of ``fresh``, and an SGD optimiser without accumulated momentum.

    On CUDA the tensors of ``network`` are overwritten instead of replaced, because recorded steps hold them.

    Parameters
    ----------
    network, optimiser
        Those of the previous outer iteration; None in the first.
    fresh : nn.Module
    lr, momentum : float
        Of a new optimiser.
    """
    if network is None or optimiser is None or not recordable(next(network.parameters()).device):
        return fresh, torch.optim.SGD(fresh.parameters(), lr=lr, momentum=momentum)
    for old, new in zip(_tensors(network), _tensors(fresh), strict=True):
        old.copy_(new)
    for state in optimiser.state.values():
        if state.get("momentum_buffer") is not None:
            state["momentum_buffer"].zero_()  # the next step sets it to the gradient, as a new optimiser would
    return network, optimiser


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
