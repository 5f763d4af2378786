"""Recorded steps, class gradients, precision and memory on a CUDA device. Skipped elsewhere.

Results are compared with the CPU in float64, which other tests compare with tests/reference.py.
"""

import gc
import logging
import math

import numpy as np
import pytest
import torch
from conftest import make_data, stopped_everywhere, tiny_recipe

import gmlib as gm
from gmlib import networks
from gmlib.analysis import costs
from gmlib.analysis.matching import pulls
from gmlib.runtime import generator
from gmlib.speed import gradients, recording
from gmlib.speed.memory import Memory
from gmlib.speed.precision import matmul_precision

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


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_real_gradients_of_the_papers_size_are_near_float64(shape):
    """256 images of one class and width 128: libraries may choose other algorithms than for small networks.

    Noise images have small mean gradients, so rounding counts: on a CPU float32 is 4e-4 away, and bfloat16 0.04.
    """
    network = networks.build("convnet", shape, 10, generator=generator(0), dtype=torch.float64)
    x = torch.randn(256, *shape, generator=generator(1), dtype=torch.float64)
    exact = gradients.class_gradients(network, [x], implementation="loop")
    network.float().to(CUDA)
    for precision, allowed in (("float32", 1e-3), ("tf32", 0.03), ("bf16", 0.1), ("tf32+bf16", 0.1)):
        with matmul_precision(precision):
            near = gradients.class_gradients(network, [x.float().to(CUDA)], precision=precision)
        errors = [relative_error(b, a) for a, b in zip(exact, near, strict=True)]
        assert max(errors) < allowed, (precision, errors)


def test_hundreds_of_replays_equal_the_cpu():
    """As many steps of theta between two updates as in the paper's schedule for ten images per class."""
    data = make_data((12, 11, 13))
    recipe = tiny_recipe(ipc=10, what="multi", how="d1 + d2", outer_loops=3, inner_loops=4, zeta_theta=50)
    on_cpu, on_gpu = (gm.condense(data, recipe, device, progress=False) for device in ("cpu", "cuda"))
    assert relative_error(on_gpu.images, on_cpu.images) < 1e-5


def test_methods_made_together_equal_those_made_alone():
    data = make_data((8, 6, 7))
    recipes = [tiny_recipe(outer_loops=4, what=what, how="d1 + d2") for what in ("intra", "inter", "multi")]
    together = gm.condense_together(data, recipes, "cuda", progress=False)
    for S, recipe in zip(together, recipes, strict=True):
        assert relative_error(S.images, gm.condense(data, recipe, "cpu", progress=False).images) < 1e-6


def test_a_run_that_was_stopped_everywhere_ends_like_a_whole_one(tmp_path):
    data, recipe = make_data((8, 8, 8)), tiny_recipe(ipc=2, outer_loops=4, inner_loops=3, zeta_theta=2)
    whole = gm.condense(data, recipe, "cuda", progress=False)
    S = stopped_everywhere(data, recipe, "cuda", tmp_path / "c.safetensors")
    assert relative_error(S.images, whole.images) < 1e-6


def test_a_run_gives_its_memory_back():
    data = make_data((40, 40, 40), (3, 32, 32), dtype=torch.float32)
    recipe = tiny_recipe(ipc=2, width=32, depth=3, batch_real=40, outer_loops=4)

    def held():
        gm.condense(data, recipe, "cuda", progress=False)
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    held()  # libraries keep their workspaces
    first, second = held(), held()
    assert second[0] <= first[0] + 2**20 and second[1] <= first[1] + 2**21


def test_a_run_that_diverges_reports_its_iteration():
    recipe = tiny_recipe(ipc=2, outer_loops=6, inner_loops=3, zeta_theta=1, lr_images=1e308)
    with pytest.raises(gm.Diverged) as error:
        gm.condense(make_data((8, 8, 8)), recipe, "cuda", progress=False)
    assert error.value.k == 0 and error.value.S.images.isfinite().all()


def test_what_is_measured_along_the_way_equals_the_cpu():
    """Sections 3.3 and 5."""
    data = make_data((8, 6, 7))
    recipe = tiny_recipe(ipc=2, what="multi", how="d1 + d2", outer_loops=2, inner_loops=3, zeta_theta=3)
    S = gm.condense(data, recipe, "cpu", progress=False)
    for on_cpu, on_gpu in (
        [pulls(data, recipe, device=device) for device in ("cpu", "cuda")],
        [
            gm.reach(S, [0.5, 0.1], n_starts=2, max_steps=30, width=4, depth=2, device=device, progress=False)
            for device in ("cpu", "cuda")
        ],
    ):
        numbers = [table.select_dtypes("number") for table in (on_cpu, on_gpu)]
        assert len(numbers[0]) and list(numbers[0]) == list(numbers[1])
        np.testing.assert_allclose(numbers[1].to_numpy(float), numbers[0].to_numpy(float), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "tf32+bf16"])
def test_lower_precision_changes_a_set_little(precision):
    if "tf32" in precision and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    data = make_data((40, 40, 40), (3, 32, 32), dtype=torch.float32)
    recipe = tiny_recipe(ipc=1, what="multi", how="d1 + d2", batch_real=40, width=32, depth=3, outer_loops=3)
    lower = gm.Recipe(**{**recipe.as_dict(), "precision": precision})
    exact, rough, exact_again = (gm.condense(data, r, "cuda", progress=False).images for r in (recipe, lower, recipe))
    assert relative_error(rough, exact) < 0.1
    assert precision == "tf32" or relative_error(rough, exact) > 0  # small layers may have no kernel for TF32
    assert relative_error(exact_again, exact) < 1e-4, "the settings are restored"


def test_a_step_that_reads_a_value_runs_unrecorded(caplog):
    step = recording.Replay(lambda x: x + 1 if x.sum().item() > 0 else x, CUDA)
    with caplog.at_level(logging.WARNING):
        assert [step(torch.ones(1, device=CUDA)).item() for _ in range(5)] == [2.0] * 5
    (record,) = caplog.records
    assert "cannot be recorded" in record.getMessage()


def test_after_a_step_that_cannot_be_recorded_others_are(monkeypatch):
    """The allocator gives memory back, and random numbers come, as if nothing had been tried."""
    made = count_graphs(monkeypatch)
    bad = recording.Replay(lambda x: x + x.sum().item(), CUDA)
    for _ in range(4):
        bad(torch.ones(2, device=CUDA))
    big = torch.empty(2**30, dtype=torch.uint8, device=CUDA)
    before = torch.cuda.memory_reserved()
    del big
    torch.cuda.empty_cache()
    assert before - torch.cuda.memory_reserved() >= 2**30
    assert torch.rand(3, device=CUDA).isfinite().all()
    good = recording.Replay(lambda x: x * 2 + 1, CUDA)
    assert [good(torch.full((1,), float(n), device=CUDA)).item() for n in range(5)] == [1, 3, 5, 7, 9]
    assert len(made) == 1 and good.can_record and not bad.can_record


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
