"""Passes in chunks, and what happens when memory runs out; the values themselves are in test_agreement.py."""

import functools
import logging

import pytest
import torch
from conftest import make_data, tiny_recipe

import gmlib as gm
from gmlib import gradients, how, networks
from gmlib.evaluate import accuracy
from gmlib.memory import Memory
from gmlib.recipe import generator
from gmlib.what import WHAT


def problem():
    data = make_data((7, 5, 6), (1, 8, 8))
    network = networks.build("convnet", (1, 8, 8), 3, generator=generator(0, "test"), width=4, depth=2, dtype=torch.float64)
    S = torch.randn(9, 1, 8, 8, generator=generator(0, "S"), dtype=torch.float64).requires_grad_()
    return data, network, S, [data.of_class(c) for c in range(3)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_results_do_not_depend_on_the_chunk(chunk):
    data, network, S, real = problem()
    y = torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1])

    def everything(chunk):
        gT = gradients.class_gradients(network, real, chunk=chunk)
        gS = gradients.class_gradients(network, S.split(3), create_graph=True, chunk=chunk)
        mixed = (gradients.batch_gradient(network, S, y, create_graph=True, chunk=chunk), [g[0] for g in gT])
        options = {"lam": 3.0, "weights": data.class_weights, "k": 0, "mixed": mixed}
        loss = WHAT["multi"](how.distance("d1 + d2"), gS, gT, **options)
        return [loss.detach(), *torch.autograd.grad(loss, S), *gT, *(g.detach() for g in gS)]

    for whole, parts in zip(everything(None), everything(chunk), strict=True):
        assert torch.allclose(whole, parts, rtol=1e-10, atol=1e-13)


def test_a_batch_gradient_is_the_classes_mean():
    _, network, S, _ = problem()
    labels = torch.arange(3).repeat_interleave(3)
    one = gradients.batch_gradient(network, S, labels)
    each = gradients.class_gradients(network, S.split(3))
    assert all(torch.allclose(a, b.mean(0), atol=1e-14) for a, b in zip(one, each, strict=True))


def test_running_out_of_memory_halves_the_chunk_and_the_run_goes_on(monkeypatch, caplog):
    """A device that takes at most 3 images in a pass: the same S to rounding, and one line for each halving."""
    data, recipe = make_data((8, 8, 8)), tiny_recipe(ipc=2, what="multi", inner_loops=2, zeta_theta=2, batch_real=8)
    whole = gm.condense(data, recipe, "cpu", progress=False)
    asked = []

    def limited(network, x, y, create_graph, chunk, real=gradients._gradient):
        asked.append(chunk)
        if min(len(x), chunk or len(x)) > 3:
            raise torch.OutOfMemoryError("made up")
        return real(network, x, y, create_graph, chunk)

    monkeypatch.setattr(gradients, "_gradient", limited)
    with caplog.at_level(logging.WARNING):
        chunked = gm.condense(data, recipe, "cpu", progress=False)
    assert torch.allclose(chunked.images, whole.images, rtol=1e-9, atol=1e-12)
    assert [r.getMessage() for r in caplog.records] == [
        f"out of memory: going on with at most {n} images in one pass" for n in (4, 2)
    ]
    assert asked[-1] == 2, "once halved it stays so"


class Small(torch.nn.Module):
    """A device with room for at most `room` images in a pass."""

    def __init__(self, network, room):
        super().__init__()
        self.network, self.room, self.seen = network, room, []

    def forward(self, x):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("made up")
        self.seen.append(len(x))
        return self.network(x)


def test_running_out_of_memory_while_training_or_testing_takes_smaller_passes():
    data = make_data((8, 8, 8))
    x, y = data.train_images, data.train_labels
    build = functools.partial(networks.build, "convnet", data.shape, 3, width=4, depth=2, dtype=torch.float64)
    whole, small = (build(generator=generator(0)) for _ in range(2))
    limited = Small(small, 5)
    for network in (whole, limited):
        networks.fit(network, x, y, epochs=3, rng=generator(1), batch=10, lr=0.1)
    assert max(limited.seen) == 5 and limited.seen[-5:] == [5, 5, 5, 5, 4], "10, 10 and 4 images, once halved for good"
    for a, b in zip(whole.parameters(), small.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)
    assert accuracy(limited, x, y) == accuracy(whole, x, y)


def test_a_batch_that_batchnorm_needs_whole_is_not_split():
    data = make_data((8, 8, 8))
    network = networks.build("convnet:norm=batch", data.shape, 3, width=4, depth=2, generator=generator(0))
    with pytest.raises(torch.OutOfMemoryError):
        networks.fit(Small(network, 5), data.train_images.float(), data.train_labels, epochs=1, rng=generator(1), batch=10)


def test_memory_passes_other_errors_on_and_gives_up_below_one_image():
    memory = Memory(4)
    with pytest.raises(KeyError):
        for attempt in memory:
            with attempt:
                raise KeyError
    tried = []
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        for attempt in memory:
            with attempt:
                tried.append(memory.chunk)
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    assert tried == [None, 2, 1]


def test_a_users_layer_norm_takes_the_loop(monkeypatch):
    """torch 2.14 gives a wrong derivative for it under vmap(grad), without a word."""
    network = torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.LayerNorm((1, 16)), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    S = torch.randn(4, 1, 4, 4, generator=generator(0), requires_grad=True)
    monkeypatch.setattr(gradients, "_vmap", None)
    assert len(gradients.class_gradients(network, S.split(2), create_graph=True)) == 3
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 2))
    with pytest.raises(TypeError):
        gradients.class_gradients(plain, S.split(2), create_graph=True)
