"""Class gradients, smaller passes when memory runs out, precision, and recorded steps. Values: test_agreement.py."""

import copy
import functools
import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from conftest import make_data, stopped_everywhere, tiny_recipe

import gmlib as gm
from gmlib import how, lines, networks
from gmlib.analysis.matching import pulls
from gmlib.evaluation import accuracy
from gmlib.runtime import generator
from gmlib.speed import gradients, precision, recording, training
from gmlib.speed.memory import Memory
from gmlib.speed.precision import matmul_precision
from gmlib.what import WHAT


def problem():
    data = make_data((7, 5, 6), (1, 8, 8))
    network = networks.build(
        "convnet", (1, 8, 8), 3, generator=generator(0, "test"), width=4, depth=2, dtype=torch.float64
    )
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


def test_a_batch_gradient_is_the_mean_over_classes():
    _, network, S, _ = problem()
    labels = torch.arange(3).repeat_interleave(3)
    one = gradients.batch_gradient(network, S, labels)
    each = gradients.class_gradients(network, S.split(3))
    assert all(torch.allclose(a, b.mean(0), atol=1e-14) for a, b in zip(one, each, strict=True))


def test_running_out_of_memory_halves_the_chunk_and_the_run_continues(monkeypatch, caplog):
    """A device with memory for 3 images per pass gives the same S to rounding, and one log line per halving."""
    data, recipe = make_data((8, 8, 8)), tiny_recipe(ipc=2, what="multi", inner_loops=2, zeta_theta=2, batch_real=8)
    whole = gm.condense(data, recipe, "cpu", progress=False)
    asked = []

    def limited(network, x, y, create_graph, chunk, real=gradients._gradient):
        asked.append(chunk)
        if min(len(x), chunk or len(x)) > 3:
            raise torch.OutOfMemoryError("made up")
        return real(network, x, y, create_graph, chunk)

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(gradients, "_gradient", limited)
    monkeypatch.setitem(gradients.IMPLEMENTATIONS, "grouped", out_of_memory)
    with caplog.at_level(logging.WARNING):
        chunked = gm.condense(data, recipe, "cpu", progress=False)
    assert torch.allclose(chunked.images, whole.images, rtol=1e-9, atol=1e-12)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and "4 images" in messages[0] and "2 images" in messages[1]
    assert asked[-1] == 2, "the chunk stays small"


class SmallMemory(torch.nn.Module):
    """A network that runs out of memory with more than ``room`` images in a pass."""

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
    limited = SmallMemory(small, 5)
    for network in (whole, limited):
        training.fit(network, x, y, epochs=3, rng=generator(1), batch=10, lr=0.1)
    assert max(limited.seen) == 5 and limited.seen[-5:] == [5, 5, 5, 5, 4], "batches of 10, 10 and 4, halved"
    for a, b in zip(whole.parameters(), small.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)
    assert accuracy(limited, x, y) == accuracy(whole, x, y)


def test_a_batch_for_batchnorm_is_not_split():
    data = make_data((8, 8, 8))
    network = networks.build("convnet:norm=batch", data.shape, 3, width=4, depth=2, generator=generator(0))
    with pytest.raises(torch.OutOfMemoryError):
        limited = SmallMemory(network, 5)
        training.fit(limited, data.train_images.float(), data.train_labels, epochs=1, rng=generator(1), batch=10)


def test_memory_raises_other_errors_and_stops_at_one_image():
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


def test_a_users_layer_norm_uses_the_loop(monkeypatch):
    """torch 2.14 gives a wrong derivative for it under vmap(grad), without a warning."""
    network = torch.nn.Sequential(
        torch.nn.Flatten(2), torch.nn.LayerNorm((1, 16)), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )
    S = torch.randn(4, 1, 4, 4, generator=generator(0), requires_grad=True)
    fastest = functools.partial(gradients.fastest_implementation, create_graph=True, chunk=None)
    assert fastest(network, S.split(2)) == "loop"
    assert len(gradients.class_gradients(network, S.split(2), create_graph=True)) == 3
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 2))
    assert fastest(plain, S.split(2)) == "vmap"


# ---- implementations, precision, recorded steps -----------------------------------------------------------


def test_the_implementation_is_chosen_by_the_size_of_the_work():
    network = networks.build("convnet", (1, 8, 8), 3, generator=generator(0), width=32, depth=2)
    tiny, many = torch.randn(6, 1, 8, 8), torch.randn(2100, 1, 8, 8)
    unequal = [torch.randn(n, 1, 8, 8) for n in (2, 1, 2)]

    def fastest(batches, create_graph=True, chunk=None):
        return gradients.fastest_implementation(network, batches, create_graph, chunk)

    assert fastest(tiny.split(2)) == "vmap"
    assert fastest(tiny.split(2), create_graph=False) == "grouped"
    assert fastest(tiny[:3].split(1)) == fastest(unequal) == "grouped"
    assert fastest(tiny.split(2), chunk=6) == "grouped" and fastest(tiny.split(2), chunk=5) == "loop"
    assert fastest(many.split(700), create_graph=False) == "loop", "more than the cache holds"


def test_grouped_needs_images_that_do_not_mix_and_layers_that_run_once():
    layer = torch.nn.Conv2d(1, 1, 3, padding=1)
    head = [torch.nn.Flatten(), torch.nn.Linear(16, 2)]
    fits = torch.nn.Sequential(layer, torch.nn.BatchNorm2d(1).eval(), *head)
    assert gradients._supports_grouped(fits)
    assert not gradients._supports_grouped(torch.nn.Sequential(layer, layer, *head)), "a layer that runs twice"
    assert not gradients._supports_grouped(fits.train()), "BatchNorm mixes"
    assert not gradients._supports_grouped(torch.nn.Sequential(layer, torch.nn.LayerNorm((1, 4, 4)), *head)), (
        "a weight of another layer"
    )
    tied = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    tied[2].weight = tied[1].weight
    assert not gradients._supports_grouped(tied), "a shared weight"
    padded = torch.nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
    assert not gradients._supports_grouped(torch.nn.Sequential(padded, *head))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_loop_over_large_classes_uses_one_thread_per_class(monkeypatch, precision):
    """The bits are those of one thread, in both precisions. A graph for S is made by all threads together."""
    data = make_data((9, 7, 8), dtype=torch.float32)
    network = networks.build("convnet", (1, 8, 8), 3, generator=generator(0), width=4, depth=2)
    real, seen = [data.of_class(c) for c in range(3)], []
    options = {"implementation": "loop", "precision": precision}
    monkeypatch.setattr(gradients, "pass_size", lambda *_: 4)
    monkeypatch.setattr(gradients, "is_own", lambda network: True)  # although the next line changes it
    monkeypatch.setattr(
        network, "forward", lambda x, real=network.forward: seen.append(torch.get_num_threads()) or real(x)
    )
    alone = gradients.class_gradients(network, real, **options)
    torch.set_num_threads(2)
    together = gradients.class_gradients(network, real, **options)
    assert seen == [1] * 14 and torch.get_num_threads() == 2, "three, two and two parts, for each of the two calls"
    gradients.class_gradients(network, real, create_graph=True, **options)
    assert seen[14:] == [2] * 3
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("name", gradients.IMPLEMENTATIONS)
def test_gradients_of_real_images_hold_no_graph(name):
    """A graph would keep the activations of all images, on CUDA for the whole run."""
    _, network, S, _ = problem()
    gT = gradients.class_gradients(network, S.detach().split(3), implementation=name)
    gS = gradients.class_gradients(network, S.split(3), implementation=name, create_graph=True)
    assert not any(g.requires_grad for g in gT) and all(g.requires_grad for g in gS)


def test_grouped_supports_linear_layers_over_rows():
    network = torch.nn.Sequential(
        torch.nn.Flatten(2), torch.nn.Linear(16, 5), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(10, 2)
    ).double()
    x = torch.randn(4, 2, 4, 4, generator=generator(0), dtype=torch.float64).split(2)
    grouped, looped = (gradients.class_gradients(network, x, implementation=name) for name in ("grouped", "loop"))
    assert gradients._supports_grouped(network)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(grouped, looped, strict=True))


def test_grouped_takes_some_classes_at_a_time_if_not_all_fit(monkeypatch):
    _, network, _, real = problem()
    whole = gradients.class_gradients(network, real, implementation="grouped")
    sizes = []
    monkeypatch.setattr(gradients, "pass_size", lambda *_: 14)  # two of the largest classes
    monkeypatch.setattr(network, "forward", lambda x, real=network.forward: sizes.append(len(x)) or real(x))
    parts = gradients.class_gradients(network, real, implementation="grouped")
    assert sizes == [12, 6] and all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(whole, parts, strict=True))


def test_bfloat16_applies_to_real_images_only(monkeypatch):
    data, recipe = make_data((8, 8, 8), dtype=torch.float32), tiny_recipe(what="multi", how="d1 + d2", batch_real=8)
    asked = []

    def class_gradients(*args, real=gradients.class_gradients, **options):
        g = real(*args, **options)
        asked.append((options.get("create_graph", False), options.get("precision"), {layer.dtype for layer in g}))
        return g

    monkeypatch.setattr(lines, "class_gradients", class_gradients)
    exact = gm.condense(data, recipe, "cpu", progress=False)
    rough = gm.condense(data, gm.Recipe(**{**recipe.as_dict(), "precision": "bf16"}), "cpu", progress=False)
    of_S, in_float32, in_bf16 = (
        (*choice, {torch.float32}) for choice in ((True, None), (False, "float32"), (False, "bf16"))
    )
    assert asked == [in_float32, of_S] * 2 + [in_bf16, of_S] * 2
    assert not torch.equal(exact.images, rough.images) and torch.allclose(exact.images, rough.images, atol=0.02)
    network = networks.build("convnet", (1, 8, 8), 3, generator=generator(0), width=4, depth=2)
    for name in ("loop", "grouped"):

        def flat(precision, name=name):
            batches = data.train_images.split(8)
            g = gradients.class_gradients(network, batches, implementation=name, precision=precision)
            return torch.cat([layer.flatten() for layer in g])

        g, g16 = flat("float32"), flat("bf16")
        assert g.dtype == g16.dtype == torch.float32 and 0 < (g - g16).norm() / g.norm() < 0.05, name


def in_block(precision):
    with matmul_precision(precision):
        return torch.backends.cuda.matmul.allow_tf32


def test_precision_holds_for_its_block_and_threads_must_agree():
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    with matmul_precision("tf32+bf16"):
        with matmul_precision("tf32"):
            assert matmul.allow_tf32 and convolution.allow_tf32
        assert matmul.allow_tf32 and convolution.allow_tf32
        with matmul_precision("float32"):  # as networks are trained on a set that forms
            assert not matmul.allow_tf32 and not convolution.allow_tf32
        assert matmul.allow_tf32 and convolution.allow_tf32
        other = ThreadPoolExecutor(1)
        with pytest.raises(RuntimeError, match="TF32"):
            other.submit(in_block, "float32").result()
        assert other.submit(in_block, "tf32").result() and matmul.allow_tf32
    with pytest.raises(KeyError), matmul_precision("float32"):
        assert not matmul.allow_tf32 and not convolution.allow_tf32
        raise KeyError
    assert (matmul.allow_tf32, convolution.allow_tf32) == before


def test_the_third_call_of_a_step_is_recorded_and_every_call_has_its_effect(recorded):
    total, seen = torch.zeros(2), []

    def add(x):
        seen.append(x)
        total.add_(x)
        return total * 2, [x + 1]

    step = recording.Replay(add, torch.device("cpu"))
    xs = [torch.full((2,), float(n)) for n in range(1, 6)]
    for n, x in enumerate(xs):
        doubled, (more,) = step(x)
        assert torch.equal(total, sum(xs[: n + 1])) and torch.equal(doubled, 2 * total) and torch.equal(more, x + 1)
    assert seen[0] is xs[0] and seen[1] is xs[1] and seen[2] is seen[4] is not xs[2] and recorded.made == 1
    for _ in range(3):
        step(torch.ones(1))  # of another shape
    assert recorded.made == 2 and torch.equal(total, torch.full((2,), 18.0))


def test_a_step_that_cannot_be_recorded_runs_normally_and_logs_the_reason(recorded, monkeypatch, caplog):
    def refuse(*_):
        """As torch does: what follows while streams and the recording end hides the reason."""
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            try:
                raise RuntimeError("operation failed due to a previous error")
            finally:
                raise RuntimeError("the recording ended early")

    monkeypatch.setattr(recording, "Graph", refuse)
    step = recording.Replay(lambda x: x + 1, torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        assert [step(torch.tensor(n)).item() for n in range(5)] == [1, 2, 3, 4, 5]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "cannot be recorded" in message and "operation not permitted when stream is capturing" in message
    assert "more" not in message, "only the first line of the error"
    monkeypatch.setattr(recording, "Graph", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("made up")))
    step = recording.Replay(lambda x: x, torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        [step(torch.tensor(0)) for _ in range(3)]


def test_a_step_that_reads_a_value_is_not_recorded_at_all(recorded, monkeypatch, caplog):
    """Its second call shows it. Other warnings are passed on."""
    said = "called a synchronizing CUDA operation (Triggered internally at ...)"
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with recording.host_reads(torch.device("cpu")) as reads:
        pass
    assert not modes and not reads
    with pytest.warns(UserWarning, match="something else"), recording.host_reads(torch.device("cuda")) as reads:
        warnings.warn(said, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert modes == ["warn", 0] and reads == [said]

    monkeypatch.setattr(recording, "host_reads", lambda device: nullcontext([said] if step.calls else []))
    step = recording.Replay(lambda x: x + 1, torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        assert [step(torch.tensor(n)).item() for n in range(5)] == [1, 2, 3, 4, 5]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "cannot be recorded" in message and "synchronizing" in message and recorded.made == 0


def test_a_call_that_ran_out_of_memory_does_not_count_as_warm_up(recorded):
    """Otherwise a step would be recorded before its optimiser has buffers."""
    room, calls = [], []

    def step(x):
        calls.append(len(calls))
        if len(calls) <= 2:
            raise torch.OutOfMemoryError("made up")
        room.append(x)

    replay = recording.Replay(step, torch.device("cpu"))
    for n in range(4):
        try:
            replay(torch.tensor(n))
        except torch.OutOfMemoryError:
            continue
    assert len(room) == 2 and recorded.made == 0
    replay(torch.tensor(4))
    assert recorded.made == 1


@pytest.mark.parametrize(
    ("choice", "least"),
    [
        ({"what": "multi", "how": "d1 + d2", "where": "adaptive"}, 2),
        ({"what": "interleaved", "where": "steps:3,1"}, 3),
        ({"what": "multi", "inter_batches": "sampled"}, 2),
        ({"what": "multi", "augment": "dsa"}, 1),  # transformations differ each time, so only the step of theta
        ({"what": "intra", "network": "convnet:norm=batch"}, 2),
        ({"what": "multi", "where": "overfit", "lr_network": 0.3}, 2),
        ({"what": "multi", "batch_theta": 4}, 3),  # mini-batches of 4 and of 2
        ({"what": "multi", "zeta_S": 2}, 2),
    ],
    ids=str,
)
def test_a_recorded_run_gives_the_same_result_to_rounding(choice, least, request):
    data = make_data((8, 6, 7))
    recipe = tiny_recipe(**{"ipc": 2, "outer_loops": 4, "inner_loops": 3, "zeta_theta": 3, **choice})
    usual = gm.condense(data, recipe, "cpu", progress=False)
    graphs = request.getfixturevalue("recorded")
    again = gm.condense(data, recipe, "cpu", progress=False)
    assert graphs.made >= least
    assert torch.allclose(again.images, usual.images, rtol=1e-9, atol=1e-12)
    for a, b in zip(usual.history, again.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9) and a["theta_steps"] == b["theta_steps"]


def test_a_recorded_run_continues_from_a_checkpoint(recorded, tmp_path):
    data, recipe = make_data((8, 8, 8)), tiny_recipe(ipc=2, outer_loops=4, inner_loops=3, zeta_theta=2)
    whole = gm.condense(data, recipe, "cpu", progress=False)
    S = stopped_everywhere(data, recipe, "cpu", tmp_path / "c.safetensors")
    assert torch.allclose(S.images, whole.images, rtol=1e-9, atol=1e-12)


def test_a_recorded_run_that_diverges_reports_its_iteration(recorded):
    data = make_data((8, 8, 8))
    recipe = tiny_recipe(ipc=2, outer_loops=3, inner_loops=3, zeta_theta=1, lr_images=1e308)
    with pytest.raises(gm.Diverged) as error:
        gm.condense(data, recipe, "cpu", progress=False)
    assert error.value.k == 0 and error.value.t <= 1 and error.value.S.images.isfinite().all()


def test_drawing_all_classes_at_once_equals_drawing_one_by_one():
    data = make_data((8, 3, 7))
    at_once = data.sample_classes(5, generator(0, "draw"))
    rng = generator(0, "draw")
    assert all(torch.equal(x, data.sample(c, 5, rng)) for c, x in enumerate(at_once))
    assert [len(x) for x in at_once] == [5, 3, 5]
    with pytest.raises(ValueError, match="0"):
        data.sample_classes(0, rng)


# ---- bfloat16 on a CPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_bfloat16_gradients_of_the_wide_convnet_are_close(shape):
    """The pass of `fast_forward`, and autocast for comparison. Both round to 8 bits."""
    network = networks.build("convnet", shape, 3, generator=generator(0, "network"))
    smooth = torch.nn.functional.avg_pool2d(torch.randn(36, *shape, generator=generator(0, "x")), 3, 1, 1)
    batches = list(smooth.split(12))
    exact = gradients.class_gradients(copy.deepcopy(network).double(), [x.double() for x in batches])
    fast = gradients.class_gradients(network, batches, precision="bf16", implementation="loop")
    parameters = [p for _, p in networks.matched(network)]
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.zeros(12, dtype=torch.int64)
        by_autocast = gradients._summed_gradient(network, parameters, batches[0], y, 12)
    for layer, (g, e, a) in enumerate(zip(fast, exact, by_autocast, strict=True)):
        assert g.dtype == torch.float32
        e0 = e[0].reshape(a.shape)
        error, by_rounding = ((f.double() - e0).norm() / e0.norm() for f in (g[0].reshape(a.shape), a))
        assert 0 < error < 3 * by_rounding < 0.5, layer
    again = gradients.class_gradients(network, batches, precision="bf16", implementation="loop")
    assert all(map(torch.equal, fast, again))


@pytest.mark.parametrize(("seconds", "chosen"), [((1.0, 0.5), "bf16"), ((1.0, 0.9), "float32")])
def test_the_faster_precision_is_chosen_if_it_gains_enough(seconds, chosen, monkeypatch):
    network, x = networks.build("mlp", (1, 8, 8), 3, generator=generator(0)), torch.randn(70, 1, 8, 8)
    sizes = []

    def timed(network, batches, name):
        sizes.append(sum(map(len, batches)))
        return seconds[name == "bf16"]

    monkeypatch.setattr(precision, "_seconds", timed)
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    assert precision.fastest_precision(network, [x, x]) == chosen
    assert set(sizes) == {precision.MEASURED}
    assert precision.fastest_precision(network, [x.double()]) == "float32", "a check in float64 stays exact"
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    assert precision.fastest_precision(network, [x]) == "float32"


def test_a_precision_is_really_timed():
    network, x = networks.build("mlp", (1, 8, 8), 3, generator=generator(0)), torch.randn(8, 1, 8, 8)
    assert all(precision._seconds(network, [x], name) > 0 for name in ("float32", "bf16"))


def test_auto_must_be_settled_before_the_pass():
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(precision="auto")
    theta, B = lines.fresh_network(data, recipe, 0), lines.sample(data, recipe, lines.streams_of(recipe, 0, 0))
    with pytest.raises(ValueError, match="is for condense"):
        lines.real_gradients(theta, B, recipe, lines.runner_for(data, recipe))
    assert pulls(data, recipe, device="cpu").notna().all(axis=None), "the analyses settle it"
