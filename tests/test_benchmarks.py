"""The benchmarks: plain computes what the library computes, work is counted correctly, and results are stored."""

import copy
import importlib
import json
import re
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data, tiny_recipe
from torch import nn
from torch.utils.data import TensorDataset

import gmlib as gm
import gmreport as report
from gmlib import augment, networks, where
from gmlib.evaluation import accuracy
from gmlib.lines import Batches, class_weights, fresh_network, initial, match, real_gradients, runner_for
from gmlib.runs.provenance import HOME
from gmlib.runtime import HEAP_SETTINGS
from gmlib.speed import training
from gmlib.speed.gradients import IMPLEMENTATIONS
from gmreport import benchmarks as report_benchmarks

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
bench, cases, ceiling, heap, plain = map(importlib.import_module, ("bench", "cases", "ceiling", "heap", "plain"))

CPU = torch.device("cpu")
RECIPES = {
    "DC": {"what": "intra", "how": "d1", "where": "fixed"},
    "MDA": {"what": "multi", "how": "d1 + d2", "where": "adaptive"},
}


@pytest.fixture
def data():
    return make_data((6, 5, 7))


@pytest.fixture
def small_machine(monkeypatch):
    """Measure the machine with matrices and copies so small that they take no time."""
    monkeypatch.setattr(ceiling, "PRODUCTS", {"cpu": (32, 64)})
    monkeypatch.setattr(ceiling, "COPIED", {"cpu": 2**12})


def start(data, method, **overrides):
    # A batch takes whole classes, so the order of its images changes results only by rounding.
    recipe = tiny_recipe(
        **RECIPES[method], ipc=2, batch_real=9, inner_loops=3, zeta_theta=2, outer_loops=1, **overrides
    )
    return recipe, fresh_network(data, recipe, 0), initial(data, recipe).requires_grad_()


# ---- the plain side ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RECIPES)
def test_plain_matching_loss_equals_the_librarys(data, method):
    recipe, network, S = start(data, method)
    indices = plain.indices_by_class(data.train_labels)
    loss = plain.matching_loss(method, network, S, data.train_images, indices, 9, np.random.default_rng(0))
    (dS,) = torch.autograd.grad(loss, S)
    real = [data.of_class(c) for c in range(3)]
    B = Batches((torch.cat(real),), [len(x) for x in real], [lambda x: x] * 3)
    run = runner_for(data, recipe)
    gT = real_gradients(network, B, recipe, run)
    labels, weights = data.labels_of(2), class_weights(data, recipe)
    expected, dS_expected, _ = match(network, S, labels, B, gT, weights, recipe, 0, run)
    assert loss.item() == pytest.approx(float(expected), rel=1e-8) and dS.abs().max() > 1e-3
    torch.testing.assert_close(dS, dS_expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", RECIPES)
def test_plain_outer_iteration_equals_the_librarys(data, method):
    recipe, network, S = start(data, method)
    expected = gm.condense(data, recipe, "cpu", progress=False)
    before = S.detach().clone()
    optimiser_S = torch.optim.SGD([S], lr=recipe.lr_images, momentum=recipe.momentum_images)
    indices = plain.indices_by_class(data.train_labels)
    loss = plain.outer_iteration(
        method,
        network,
        S,
        optimiser_S,
        data.train_images,
        indices,
        T=3,
        zeta=2,
        batch=9,
        rng=np.random.default_rng(0),
    )
    assert loss == pytest.approx(expected.history[0]["loss"], rel=1e-8)
    assert (S.detach() - before).abs().max() > 1e-3
    torch.testing.assert_close(S.detach(), expected.images, rtol=1e-8, atol=1e-8)


def test_plain_schedules_equal_the_papers():
    for method, recipe in RECIPES.items():
        assert [plain.steps(method, t, 7) for t in range(50)] == [
            where.steps(recipe["where"], t, 7) for t in range(50)
        ]


def test_plain_batches_hold_one_class_without_replacement():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0])
    indices = plain.indices_by_class(labels)
    assert indices == [[1, 3, 6], [2], [0, 4, 5]]
    images, rng = torch.arange(7.0), np.random.default_rng(0)
    drawn = [tuple(plain.batch_of_class(images, indices[2], 2, rng).tolist()) for _ in range(60)]
    assert set(drawn) == {(a, b) for a in (0, 4, 5) for b in (0, 4, 5) if a != b}
    assert sorted(plain.batch_of_class(images, indices[0], 9, rng).tolist()) == [1, 3, 6]


def test_plain_training_and_test_equal_the_librarys(data):
    _, network, S = start(data, "DC")
    S, labels = S.detach(), torch.arange(3).repeat_interleave(2)
    expected = training.fit(copy.deepcopy(network), S, labels, epochs=5, rng=torch.Generator())
    test = TensorDataset(data.test_images, data.test_labels)
    fresh = copy.deepcopy(network)
    (found,) = plain.evaluate([fresh], S, labels, test, 5)
    for p, q, p0 in zip(fresh.parameters(), expected.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)
        assert not torch.equal(p, p0)
    assert found == pytest.approx(accuracy(expected, data.test_images, data.test_labels))


def test_plain_reports_loss_and_accuracy_of_an_epoch(data):
    network = networks.build("mlp", data.shape, 3, generator=torch.Generator(), dtype=torch.float64)
    x, y = data.test_images, data.test_labels
    loader = torch.utils.data.DataLoader(TensorDataset(x, y), batch_size=4)
    still = torch.optim.SGD(network.parameters(), lr=1e-300)
    loss, right = plain.epoch(network, loader, still)
    assert loss == pytest.approx(nn.functional.cross_entropy(network(x), y).item(), rel=1e-8)
    assert right == pytest.approx(accuracy(network, x, y))


@pytest.mark.parametrize("channels", [1, 3])
def test_plain_operations_equal_the_librarys(channels):
    x = torch.rand(1, channels, 13, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image, fill = x[0].numpy(), np.full((channels, 1, 1), 0.25)
    one = augment.OPERATIONS

    def librarys(name, drawn):
        return one[name].apply(x, torch.tensor([drawn]), torch.from_numpy(fill)[None])

    pairs = [
        *((plain.shift(image, *d, fill), librarys("shift", d)) for d in ((0, 0), (4, -4), (-3, 1))),
        *((plain.stretch(image, *size), librarys("stretch", size)) for size in ((13, 13), (10, 15), (15, 11))),
        *((plain.turn(image, d, fill), librarys("turn", d)) for d in (0, 44, -20)),
    ]
    for i, (found, expected) in enumerate(pairs):
        np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-12)
        assert np.allclose(found, image, atol=1e-12) == (i % 3 == 0)  # only the first of each changes nothing


def test_plain_augmentation_varies_each_image_separately():
    x = torch.rand(40, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    y = plain.augmented(x, np.random.default_rng(0))
    assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all()
    assert sum(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) >= 34  # of 9 x 9
    assert torch.equal(y, plain.augmented(x, np.random.default_rng(0)))
    ones = plain.augmented(torch.ones(30, 2, 9, 9), np.random.default_rng(0))
    fills = ones.sub(1).abs().amax((1, 2, 3)) < 1e-6  # the mean of the channel around shifted and turned images
    assert 15 <= fills.sum() < 30 and ones[~fills].unique().tolist() == [0, 1], "and 0 around stretched ones"


# ---- the ceiling ------------------------------------------------------------------------------------------


def test_counted_work_of_a_convnet_by_hand():
    n, network = 5, networks.build("convnet", (3, 8, 8), 10, width=4, depth=2, generator=torch.Generator())
    # A 3x3 convolution has out * in * 9 products per pixel. The second sees 4x4 pixels, the linear layer 4 * 2 * 2.
    first, second, linear = 4 * 3 * 9 * 64, 4 * 4 * 9 * 16, 16 * 10
    forward = ceiling.work(ceiling.forward, network, n, (3, 8, 8))
    gradient = ceiling.work(ceiling.gradient, network, n, (3, 8, 8))
    assert forward.flops == 2 * n * (first + second + linear)
    # Backward: once more for the weights, and once for the inputs of all layers but the first.
    assert gradient.flops == 2 * n * (2 * first + 3 * second + 3 * linear)
    images, weights = n * (3 * 64 + 4 * 64 + 4 * 16 + 4 * 16 + 16 + 10), 4 * 3 * 9 + 4 + 4 * 4 * 9 + 4 + 160 + 10
    assert forward.bytes == 4 * (images + weights)


def test_counted_work_of_a_second_derivative_by_hand():
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    # Five 8 x 3 products per image: z = Wx, g = dz x'; then v'dz and vx from g, and W'(d dz) from z.
    assert ceiling.work(ceiling.derivative, network, 7, (2, 2, 2)).flops == 5 * 2 * 7 * 8 * 3


def test_the_ceiling_is_the_slower_of_the_two():
    machine = ceiling.Machine({"float32": 100.0, "tf32": 1000.0}, 10.0)
    a, b = ceiling.Work(200.0, 5.0), ceiling.Work(0.0, 25.0)
    assert a.seconds(machine) == 2.0 and b.seconds(machine) == 2.5
    assert (3 * a + b) == ceiling.Work(600.0, 40.0) and (3 * a + b).seconds(machine, "tf32") == 4.0


def test_rates_are_operations_and_bytes_per_second(monkeypatch, small_machine):
    assert min(ceiling.measure(CPU, 1e-3).products["float32"], ceiling.measure(CPU, 1e-3).copying) > 1e6
    monkeypatch.setattr(ceiling, "_best", lambda device, call, seconds: 0.5)
    assert ceiling.measure(CPU) == ceiling.Machine({"float32": 2 * 64**3 / 0.5}, 2 * 2**12 / 0.5)


# ---- the heap ---------------------------------------------------------------------------------------------


class Libc:
    """A C library that records its calls."""

    def __init__(self, asked):
        self.mallopt = lambda name, size: asked.append((name, size))
        self.malloc_trim = lambda pad: asked.append("trim")


def test_plain_runs_with_the_default_heap_settings(monkeypatch):
    asked, gmlibs, alone = [], list(HEAP_SETTINGS.values()), [(-3, 32 * 2**20), (-1, 64 * 2**20), (-2, 128 * 2**10)]
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: Libc(asked))
    for side, settings in (("ours", gmlibs), ("plain", alone)):
        asked.clear()
        with pytest.raises(ZeroDivisionError), heap.settings_of(side, CPU):
            assert asked == [*settings, "trim"]
            raise ZeroDivisionError
        assert asked[len(settings) + 1 :] == gmlibs, "gmlib's settings are restored after an error"
    asked.clear()
    with heap.settings_of("plain", torch.device("cuda")):
        assert not asked, "on CUDA gmlib does not change the heap"


def test_a_c_library_without_these_settings_is_not_changed(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    with heap.settings_of("plain", CPU):
        assert not hasattr(heap.ctypes.CDLL(None), "mallopt")


# ---- the run ----------------------------------------------------------------------------------------------


def test_a_case_is_measured_and_stored(tmp_path, capsys, small_machine):
    out = tmp_path / "new" / "bench.json"
    arguments = ["--quick", "--cases", "*/1x8x8/C3/ipc1*", "--repeats", "2", "--out", str(out), "--device", "cpu"]
    assert bench.main(arguments) == 0
    stored, lines = json.loads(out.read_text()), capsys.readouterr().out.splitlines()
    names = {name.split("/")[0] for name in stored["cases"]}
    assert names == {"step", "outer", "train", "evaluate", "implementation"} and len(stored["cases"]) == 11
    assert (
        stored["environment"]["torch"] == torch.__version__
        and stored["environment"]["threads"] == torch.get_num_threads()
    )
    assert {"commit", "device_name"} <= set(stored["environment"])
    (process,) = stored["runs"]
    assert process["machine"]["copying"] > 0 and datetime.fromisoformat(process["date"]).tzinfo
    for name, case in stored["cases"].items():
        (line,) = (line for line in lines if line.startswith(name + " "))
        assert f"{case['ours']:.4g}" in line and f"{case['ratio']:.2f}" in line and line.endswith(case["unit"])
        assert len(case["seconds_ours"]) == len(case["seconds_plain"]) == case["repeats"] == 2 and case["run"] == 0
        assert case["ours"] == pytest.approx(sum(case["seconds_ours"]) / 2)
        assert (
            case["ratio"] == pytest.approx(case["plain"] / case["ours"]) and case["flops"] > 0 and case["bytes"] > 0
        )
    assert "2 networks (1 plain), 2 epochs" in stored["cases"]["train/1x8x8/C3/ipc1/varied"]["unit"]


@pytest.mark.parametrize(
    "pattern",
    [
        "pass/1x8x8/C3",
        "test/3x8x8",
        "growth/T/2",
        "set/MDA/3x8x8/C3/ipc1",
        "implementation/grouped+channels_last/1x8x8/C3",
    ],
)
def test_the_other_cases_run(pattern, tmp_path, small_machine):
    stored = bench.run(pattern, repeats=1, quick=True, out=tmp_path / "b.json", device="cpu")
    assert stored["cases"][pattern]["ratio"] > 0


def test_all_implementations_agree_with_plain(monkeypatch):
    size, given = cases.replace(cases.TOY, ipc=2), []
    monkeypatch.setattr(
        cases, "_derivative", lambda g, S: given.append((g, *torch.autograd.grad([x.sum() for x in g], S)))
    )
    for name in cases.IMPLEMENTATIONS:
        pair = cases.derivative(size, CPU, name)
        for side in ("ours", "plain"):
            getattr(pair, side)()
        (ours, dS), (theirs, dS_plain) = given[-2:]
        layers = len(ours)
        for i, layer in enumerate(ours):
            stacked = torch.stack(theirs[i::layers]).reshape(layer.shape)  # class by class
            torch.testing.assert_close(layer, stacked, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(dS, dS_plain, rtol=1e-3, atol=1e-5)
        assert dS.abs().max() > 1e-3


def test_a_whole_set_is_computed_from_one_outer_iteration(monkeypatch):
    one = ceiling.Work(3.0, 2.0)
    monkeypatch.setattr(
        cases, "outer", lambda *_: cases.Pair(lambda: 0.5, lambda: 2.0, one, 2 * one, "one outer iteration")
    )
    pair = cases.whole_set(cases.TOY, "MDA", CPU)
    assert (pair.ours(), pair.plain(), pair.work, pair.calls) == (500.0, 2000.0, 1000 * one, 2 * one)
    assert pair.unit == "a whole set, computed: K = 1000 times one outer iteration"


def test_on_cuda_an_outer_iteration_is_the_difference_of_two_runs(monkeypatch):
    asked = []

    def clock(device, call):
        asked.append(call.args[1].outer_loops)
        return 7.0 + 0.25 * asked[-1]  # seven seconds for work that is done once

    monkeypatch.setattr(cases, "clock", clock)
    monkeypatch.setattr(
        cases, "random_data", lambda size, device: cases._random_data(size.shape, size.C, size.per_class, 9, CPU)
    )
    for T, runs in ((1, [4, 24]), (2, [2, 12]), (50, [1, 5])):
        asked.clear()
        pair = cases.outer(cases.replace(cases.TOY, T=T), "DC", "DC", torch.device("cuda"))
        assert pair.ours() == pytest.approx(0.25) and asked == runs
        assert pair.unit.startswith(f"one outer iteration, the mean of {runs[1] - runs[0]} after the first")


def test_work_of_an_outer_iteration_is_the_sum_of_its_parts():
    size = cases.replace(cases.TOY, T=3, zeta=2)
    one_pass = ceiling.work(ceiling.gradient, cases._network(size), 3, size.shape)
    for method, theta_steps in (("DC", 2 + 2), ("MDA", 50 + 40)):
        found = cases.outer_work(size, cases.recipe_of(size, method))
        assert found == 3 * cases.step_work(size) + theta_steps * one_pass


def made_up_pair(log, ours=lambda: None, plain=lambda: None, flops=1.0, untimed=1):
    def side(name, call, seconds):
        def measured():
            log.append(name)
            call()
            return seconds.pop(0)

        return measured

    one = ceiling.Work(flops, 0.0)
    seconds = {"ours": [9.0] * untimed + [1.0, 2.0, 4.0], "plain": [9.0] * untimed + [6.0, 5.0, 8.0]}
    sides = side("ours", ours, seconds["ours"]), side("plain", plain, seconds["plain"])
    return cases.Pair(*sides, one, 2 * one, "a thing", untimed)


@pytest.mark.parametrize("untimed", [1, 3])
def test_sides_take_turns_and_first_calls_are_not_timed(untimed):
    log, machine = [], ceiling.Machine({"float32": 2.0}, 1.0)
    found = bench.measure(lambda device: made_up_pair(log, untimed=untimed), CPU, machine, repeats=3, seconds=60)
    assert log == ["ours"] * untimed + ["plain"] * untimed + ["plain", "ours", "ours", "plain", "plain", "ours"]
    assert found["seconds_ours"] == [1.0, 2.0, 4.0] and (found["ours"], found["plain"], found["ratio"]) == (
        2.0,
        6.0,
        3.0,
    )
    assert found["ceiling"] == 0.5 and found["fraction_of_ceiling"] == 0.25


def test_cases_that_do_not_fit_are_not_run(monkeypatch):
    def found(seconds, **options):
        pair = made_up_pair(log := [], **options)
        machine = ceiling.Machine({"float32": 2.0}, 1.0)
        return bench.measure(lambda device: pair, CPU, machine, repeats=3, seconds=seconds), len(log)

    assert found(9.0, flops=10.0) == ({"unit": "a thing", "not_run": "would take about 40 s or more"}, 0)
    seconds = iter([4.0, 6.0])
    monkeypatch.setattr(bench, "clock", lambda device, call: (call(), next(seconds))[1])
    assert found(9.0) == ({"unit": "a thing", "not_run": "would take about 40 s"}, 2)
    seconds = iter([4.0, 6.0])
    assert found(25.0)[0]["repeats"] == 2  # as often as fits

    def fail():
        raise torch.OutOfMemoryError

    seconds = iter([4.0])
    assert found(9.0, plain=fail)[0] == {"not_run": "plain ran out of memory"}


@pytest.fixture
def known_rates(monkeypatch):
    monkeypatch.setattr(ceiling, "measure", lambda device, seconds: ceiling.Machine({"float32": 2.0}, 1.0))


def test_a_failing_case_gives_its_reason_and_the_run_continues(tmp_path, monkeypatch, capsys, known_rates):
    def fail():
        raise RuntimeError("\n  no such kernel\nand so on for many lines")

    def prepare(device):
        raise ValueError("does not fit")

    named = {
        "works": lambda device: made_up_pair([]),
        "fails": lambda device: made_up_pair([], ours=fail),
        "unfit": prepare,
    }
    monkeypatch.setattr(bench, "cases", lambda plan: {name: named[name] for name in ("unfit", "fails", "works")})
    options = {"repeats": 1, "out": tmp_path / "b.json", "device": "cpu"}
    stored = bench.run(**options)
    assert (
        stored["cases"]["fails"]["failed"] == "ours: RuntimeError: no such kernel"
        and stored["cases"]["works"]["ratio"] == 6
    )
    assert stored["cases"]["unfit"]["failed"] == "the preparation: ValueError: does not fit"
    said = capsys.readouterr().out
    assert "failed: ours: RuntimeError: no such kernel\n" in said and list(stored["cases"]) == [
        "unfit",
        "fails",
        "works",
    ]
    named["fails"] = named["works"]
    again = bench.run(**options)["cases"]
    assert again["fails"]["run"] == 1 and again["works"] == stored["cases"]["works"], (
        "what failed is tried again, and no other"
    )


@pytest.fixture
def counted(monkeypatch, known_rates):
    """Two cases that take no time, and the list of those that were prepared."""
    prepared = []

    def named(name):
        return lambda device: (prepared.append(name), made_up_pair([]))[1]

    monkeypatch.setattr(bench, "cases", lambda plan: {name: named(name) for name in ("one", "two")})
    return prepared


def test_a_run_in_parts_gives_one_file(tmp_path, monkeypatch, capsys, counted):
    options = {"repeats": 1, "out": tmp_path / "b.json", "device": "cpu"}
    bench.run("two", **options)
    assert counted == ["two"]
    stored = bench.run(**options)
    assert counted == ["two", "one"] and list(stored["cases"]) == ["one", "two"]
    assert [case["run"] for case in stored["cases"].values()] == [1, 0] and len(stored["runs"]) == 2
    capsys.readouterr()
    assert bench.run(**options) == stored == json.loads(options["out"].read_text()) and len(counted) == 2
    lines = capsys.readouterr().out.splitlines()
    assert all(bench.row(name, stored["cases"][name]) in lines for name in ("one", "two"))
    assert [case["run"] for case in bench.run("one", again=True, **options)["cases"].values()] == [2, 0]

    clock = iter([0.0, 0.0, 10.0])
    monkeypatch.setattr(bench.time, "monotonic", lambda: next(clock))
    counted.clear()
    stored = bench.run(**options | {"out": tmp_path / "c.json"}, seconds_total=9)
    assert counted == ["one"] and list(stored["cases"]) == ["one"]
    assert "1 of 2 cases are left" in capsys.readouterr().out


def test_a_file_with_other_settings_is_not_continued(tmp_path, monkeypatch, counted):
    options = {"out": tmp_path / "b.json", "device": "cpu"}
    bench.run(repeats=1, **options)
    with pytest.raises(ValueError, match="repeats=1"):
        bench.run(repeats=2, **options)
    made_on = bench.environment(CPU)
    monkeypatch.setattr(bench, "environment", lambda device: made_on | {"commit": "another"})
    with pytest.raises(ValueError, match="commit="):
        bench.run(repeats=1, **options)
    assert len(counted) == 2
    assert list(bench.run("two", repeats=1, again=True, **options)["cases"]) == ["two"]
    for damaged in ("{", "[]", '{"cases": {}}'):
        options["out"].write_text(damaged)
        with pytest.raises(ValueError, match="damaged"):
            bench.run(repeats=1, **options)


def test_names_of_the_cases_of_a_plan():
    full = cases.cases(cases.PLANS["cuda"])
    ipcs, kinds = (1, 10, 50), ("1x28x28/C10", "3x32x32/C10", "3x32x32/C100")
    wanted = {f"step/{m}/{kind}/ipc{n}" for m in RECIPES for kind in kinds for n in ipcs}
    wanted |= {f"outer/{m}-vs-DC/{kind}/ipc{n}" for m in RECIPES for kind in kinds[:2] for n in ipcs}
    wanted |= {
        f"{phase}/1x28x28/C10/ipc{n}/{how}"
        for phase in ("train", "evaluate")
        for n in ipcs
        for how in ("as-is", "varied")
    }
    own = ("compiled", *(f"{name}+channels_last" for name in IMPLEMENTATIONS))
    wanted |= {f"implementation/{name}/{kind}" for name in (*IMPLEMENTATIONS, *own) for kind in kinds}
    wanted |= {f"implementation/{name}/{kind}/ipc{n}" for name in IMPLEMENTATIONS for kind in kinds for n in ipcs}
    wanted |= {"set/MDA/3x32x32/C10/ipc1", "set/MDA/3x32x32/C10/ipc10"}
    wanted |= {"growth/C/100", "growth/ipc/50", "growth/B/256", "growth/width/256", "growth/T/10"}
    assert wanted <= set(full)
    assert len(list(cases._cases(cases.PLANS["cuda"]))) == len(full)  # no name twice
    # A CPU has neither whole sets nor passes over the real images of all classes.
    for_gpu = {name for name in full if name.startswith("set/") or "channels_last" in name}
    for_gpu |= {f"implementation/{name}/{kind}" for name in ("vmap", "grouped") for kind in kinds}
    assert set(full) - set(cases.cases(cases.PLANS["cpu"])) == for_gpu


def test_a_plan_in_tf32_passes_it_to_the_library():
    prepare = cases.cases(cases.PLANS["cuda"].in_precision("tf32"))
    sizes = [
        prepare[name].args[0]
        for name in ("step/DC/1x28x28/C10/ipc1", "evaluate/3x32x32/C10/ipc1/as-is", "growth/B/32")
    ]
    assert [size.precision for size in sizes] == ["tf32"] * 3 and cases.recipe_of(sizes[0], "DC").precision == "tf32"


# ---- the report -------------------------------------------------------------------------------------------


def stored_run(device, numbers):
    """A stored run on a made-up device. numbers: case -> (ours, plain, fraction of the ceiling), or a reason."""
    done = {"unit": "a thing", "repeats": 3, "peak_memory_bytes_ours": 5e6, "peak_memory_bytes_plain": None}
    made = {
        name: {"not_run": found} if isinstance(found, str) else
        {**done, "ours": found[0], "plain": found[1], "ratio": found[1] / found[0], "fraction_of_ceiling": found[2]}
        for name, found in numbers.items()
    }  # fmt: skip
    machines = [{"products": {"float32": rate}, "copying": 7e9} for rate in (1e9, 2e9)]
    runs = [{"date": f"2026-01-0{day}T00:00:00+00:00", "machine": machine} for day, machine in enumerate(machines, 1)]
    made_on = {"gmlib": "1", "commit": "abc", "torch": "2", "device": device, "device_name": "Thing", "threads": 2}
    return {"environment": made_on, "settings": {"precision": "float32"}, "runs": runs, "cases": made}


def test_aims_are_kept_missed_or_not_measured():
    assert "not run yet" in report.aims_sentence({}).data
    runs = {
        "a": stored_run(
            "cpu", {"step/DC/x/ipc1": (1, 1.4, 0.2), "step/DC/x/ipc10": (1, 1.31, 0.2), "evaluate/x": (1, 1.6, 0.1)}
        ),
        "b": stored_run("cpu", {"evaluate/x": (1, 1.2, 0.1), "step/DC/x/ipc1": "would take long"}),
        "c": stored_run("cuda:0", {"set/MDA/x/ipc1": (19, 400, 0.1), "pass/x": (1, 2, 0.5), "pass/y": (1, 2, 0.49)}),
    }
    assert re.findall(r"\d+", report.aims_sentence(runs).data) == ["8", "2", "2", "4"], (
        "all, kept, missed, unmeasured"
    )
    table = report.aims_table(runs)

    def cells(*words):
        (row,) = [row for row in table.rows if all(word in row for word in words)]
        return [table.cells[row, column] for column in ("measured", "kept")]

    assert cells("CPU", "step") == [["a: 1.31 times as fast to 1.4 times as fast, 2 cases"], ["yes"]]
    measured, kept = cells("CPU", "evaluation")
    assert measured == ["a: 1.6 times as fast, 1 case", "b: 1.2 times as fast, 1 case"]
    assert kept == ["in 1 of 2 cases"]
    assert cells("GPU", "a set", "1 image ") == [["c: 19 s, 1 case"], ["yes"]]
    assert cells("GPU", "real images") == [["c: 49 % to 50 %, 2 cases"], ["in 1 of 2 cases"]]
    assert cells("GPU", "evaluation") == [["not measured yet"], [""]]


def test_every_aim_matches_a_case():
    for aim in report_benchmarks.AIMS:
        assert any(report_benchmarks.fnmatch(name, aim.cases) for name in cases.cases(cases.PLANS[aim.device])), aim


def test_a_stored_run_is_shown_whole(tmp_path, small_machine):
    made = stored_run("cpu", {"one": (0.5, 1.0, 0.25), "two": "would take about 90 s"})
    table = report.benchmarks_table(made)
    assert table.rows == ["one", "two"] and table.cells["two", "plain / ours"] == ["not run: would take about 90 s"]
    found = {column: table.cells["one", column] for column in table.columns}
    assert found == {
        "plain / ours": ["2.00"], "plain": ["1 s"], "ours": ["0.5 s", "a thing"], "of the ceiling": ["25.0 %"],
        "peak memory": ["5 MB", "plain ?"], "n": ["3"],
    }  # fmt: skip
    for part in (
        "Thing",
        "cpu",
        "2 CPU threads",
        "1 to 2 GFLOP/s",
        "7 GB/s",
        "torch 2",
        "gmlib 1",
        "abc",
        "2026-01-02",
    ):
        assert part in table.caption
    bench.run("test/1x8x8", repeats=1, quick=True, out=tmp_path / "b.json", device="cpu")
    (real,) = report.stored_benchmarks(tmp_path).values()
    assert f"{real['cases']['test/1x8x8']['ratio']:.2f}" in str(report.benchmarks_table(real))
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match=r"c\.json is damaged"):
        report.stored_benchmarks(tmp_path)


def test_committed_runs_are_complete_and_named_after_their_device():
    assert report.stored_benchmarks().keys() == {
        path.stem for path in (HOME / "results" / "benchmarks").glob("*.json")
    }
    for name, stored in report.stored_benchmarks().items():
        device = re.sub(r"[^a-z0-9]+", "-", stored["environment"]["device_name"].lower()).strip("-")
        assert name.startswith(device) and not stored["settings"]["quick"], name
        assert any("ratio" in case for case in stored["cases"].values())
        for case in stored["cases"].values():
            if "ratio" in case:
                assert case["ratio"] == pytest.approx(
                    np.median(case["seconds_plain"]) / np.median(case["seconds_ours"])
                )
                assert case["fraction_of_ceiling"] == pytest.approx(case["ceiling"] / case["ours"])


# ---- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--cases", "nothing"], "'nothing'"),
        (["--repeats", "0"], "repeats=0 "),
        (["--cases", "test/*", "no*"], "'no*'"),
        (["--seconds", "0"], "seconds=0.0 "),
        (["--seconds-total", "-1"], "seconds_total=-1.0 "),
        (["--out", "table.csv"], "table.csv "),
        (["--device", "cpu", "--tf32"], "TF32"),
        (["--device", "cpu", "--fused", "nhwc"], "--fused"),
        (["--device", "cudax"], "'cudax'"),
    ],
)
def test_bad_input_gives_one_sentence(arguments, reason, capsys):
    assert bench.main(["--quick", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("bench: ") and reason in printed.err and printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_kind_of_case_runs_on_cuda(tmp_path):
    stored = bench.run("*/1x8x8*", repeats=1, quick=True, out=tmp_path / "b.json", device="cuda", tf32=True)
    assert set(stored["runs"][0]["machine"]["products"]) == {"float32", "tf32"}
    assert not {name: case for name, case in stored["cases"].items() if "ours" not in case}
