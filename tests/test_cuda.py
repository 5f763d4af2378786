"""Recorded steps, class gradients, precision and memory on a CUDA device. Skipped elsewhere.

Results are compared with the CPU in float64, which other tests compare with tests/reference.py.
"""

import logging
import math

import pytest
import torch
from conftest import make_data, tiny_recipe

import gmlib as gm
from gmlib import networks
from gmlib.analysis import costs
from gmlib.runtime import generator
from gmlib.speed import gradients, recording
from gmlib.speed.memory import Memory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = torch.device("cuda")
CHOICES = [
    {"what": "intra", "how": "d1", "where": "fixed"},
    {"what": "multi", "how": "d1 + d2", "where": "adaptive"},
    {"what": "interleaved", "how": "d1", "where": "steps:3,1"},
    {"what": "multi", "how": "d1", "where": "overfit", "lr_network": 0.3},
    {"what": "multi", "how": "d1", "inter_batches": "sampled"},
    {"what": "multi", "how": "d1", "augment": "dsa"},
    {"what": "multi", "how": "d1", "network": "convnet:norm=batch,pooling=max"},
    {"what": "multi", "how": "d1", "batch_theta": 4},
]


def relative_error(a, b):
    return ((a.cpu().double() - b.cpu().double()).norm() / b.cpu().double().norm()).item()


def count_graphs(monkeypatch):
    """A list that grows by every graph that is recorded."""
    made = []

    class Counted(recording.Graph):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(recording, "Graph", Counted)
    return made


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_recorded_run_equals_that_on_the_cpu(choice, monkeypatch, caplog):
    made = count_graphs(monkeypatch)
    data = make_data((8, 6, 7))
    recipe = tiny_recipe(**{"ipc": 2, "outer_loops": 4, "inner_loops": 3, "zeta_theta": 3, **choice})
    on_cpu = gm.condense(data, recipe, "cpu", progress=False)
    with caplog.at_level(logging.WARNING):
        on_gpu = gm.condense(data, recipe, "cuda", progress=False)
    assert not caplog.records, "everything could be recorded"
    assert len(made) >= 1 and on_gpu.images.is_cuda
    assert relative_error(on_gpu.images, on_cpu.images) < 1e-6
    assert [e["theta_steps"] for e in on_gpu.history] == [e["theta_steps"] for e in on_cpu.history]
    monkeypatch.setattr(recording, "recordable", lambda device: False)
    unrecorded = gm.condense(data, recipe, "cuda", progress=False)
    assert relative_error(unrecorded.images, on_gpu.images) < 1e-6


def test_the_same_seed_gives_the_same_set():
    data = make_data((8, 6, 7), dtype=torch.float32)
    recipe = tiny_recipe(ipc=2, what="multi", how="d1 + d2", outer_loops=4, inner_loops=3, zeta_theta=3)
    one, two = (gm.condense(data, recipe, "cuda", progress=False).images for _ in range(2))
    assert relative_error(one, two) < 1e-5


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("implementation", gradients.IMPLEMENTATIONS)
def test_every_implementation_equals_the_loop_on_the_cpu(implementation, shape):
    network = networks.build("convnet", shape, 3, generator=generator(0), width=8, dtype=torch.float64)
    x = torch.randn(6, *shape, generator=generator(1), dtype=torch.float64)
    found = []
    for device, name in (("cpu", "loop"), ("cuda", implementation)):
        network.to(device)
        images = x.to(device).detach().requires_grad_()
        g = gradients.class_gradients(network, images.split(2), create_graph=True, implementation=name)
        (dx,) = torch.autograd.grad(sum((layer.sin() + layer).sum() for layer in g), images)
        found.append([*(layer.detach().cpu() for layer in g), dx.cpu()])
    assert all(relative_error(b, a) < 1e-9 for a, b in zip(*found, strict=True))
    assert gradients.fastest_implementation(network, images.split(2), True, None) == "grouped"


@pytest.mark.parametrize("precision", ["tf32", "bf16", "tf32+bf16"])
def test_lower_precision_gives_a_close_but_different_result(precision):
    if "tf32" in precision and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    data = make_data((40, 40, 40), (3, 32, 32), dtype=torch.float32)
    recipe = tiny_recipe(ipc=1, what="multi", how="d1 + d2", batch_real=40, width=32, depth=3, outer_loops=3)
    lower = gm.Recipe(**{**recipe.as_dict(), "precision": precision})
    exact, rough, exact_again = (gm.condense(data, r, "cuda", progress=False).images for r in (recipe, lower, recipe))
    assert 0 < relative_error(rough, exact) < 0.1
    assert relative_error(exact_again, exact) < 1e-4, "the settings are restored"


def test_a_step_that_reads_a_value_runs_unrecorded(caplog):
    step = recording.Replay(lambda x: x + 1 if x.sum().item() > 0 else x, CUDA)
    with caplog.at_level(logging.WARNING):
        assert [step(torch.ones(1, device=CUDA)).item() for _ in range(5)] == [2.0] * 5
    (record,) = caplog.records
    assert "cannot be recorded" in record.getMessage()


def test_a_users_network_with_data_dependent_control_flow(caplog):
    class Branching(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum().item() > 0 else -x)

    def branching(channels, size, n_classes):
        return Branching(torch.nn.Flatten(), torch.nn.Linear(channels * size**2, n_classes))

    networks.register("branching", branching)
    try:
        data = make_data((8, 6, 7), (1, 26, 26))  # on a CPU, smaller images use vmap, which cannot branch
        recipe = tiny_recipe(network="branching", outer_loops=5, inner_loops=2, zeta_theta=4)
        with caplog.at_level(logging.WARNING):
            on_gpu = gm.condense(data, recipe, "cuda", progress=False)
        assert caplog.records and all("cannot be recorded" in record.getMessage() for record in caplog.records)
        on_cpu = gm.condense(data, recipe, "cpu", progress=False)
        assert relative_error(on_gpu.images, on_cpu.images) < 1e-6
    finally:
        del networks.NETWORKS["branching"]


def test_running_out_of_memory_takes_smaller_passes(caplog):
    """A pass that needs more memory than the device has raises torch's own error, and is halved until it fits."""
    memory, total = Memory(largest=64), torch.cuda.mem_get_info()[1]
    with caplog.at_level(logging.WARNING):
        for attempt in memory:
            with attempt:
                held = torch.empty((memory.chunk or 64) * total // 32, dtype=torch.uint8, device=CUDA)
    del held
    assert memory.chunk in (8, 16) and len(caplog.records) >= 2


def test_costs_include_all_work_of_the_device():
    data = make_data((40, 40, 40), (3, 32, 32), dtype=torch.float32)
    table = costs.measure(
        data, ["DC", "MDO"], 1, rounds=2, device="cuda", progress=False, width=64, batch_real=40, inner_loops=1
    )
    assert (table["device"] == "cuda").all() and (table["seconds_per_update"] > 0).all()
    assert (table["peak_memory_bytes"] > 2**20).all() and not math.isnan(table["seconds_per_look"].max())
