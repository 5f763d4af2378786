"""The benchmarks: the plain side computes what the library computes, work is counted rightly, and what is measured is stored."""

import copy
import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data, tiny_recipe
from torch import nn
from torch.utils.data import TensorDataset

import gmlib as gm
from gmlib import augment, networks, where
from gmlib.condense import Batches, fresh_network, initial, match
from gmlib.evaluate import accuracy
from gmlib.memory import Memory

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
bench, ceiling, plain = map(importlib.import_module, ("bench", "ceiling", "plain"))

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
    """Rates of the machine from products and copies that take no time."""
    monkeypatch.setattr(ceiling, "PRODUCTS", {"cpu": (32, 64)})
    monkeypatch.setattr(ceiling, "COPIED", {"cpu": 2**12})


def starting(data, method, **overrides):
    # A batch takes whole classes: the order in which it is drawn is then a matter of rounding.
    recipe = tiny_recipe(**RECIPES[method], ipc=2, batch_real=9, inner_loops=3, zeta_theta=2, outer_loops=1, **overrides)
    return recipe, fresh_network(data, recipe, 0), initial(data, recipe).requires_grad_()


# ---- the plain side ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RECIPES)
def test_plain_matching_is_the_librarys(data, method):
    recipe, network, S = starting(data, method)
    indices = plain.indices_by_class(data.train_labels)
    loss = plain.matching_loss(method, network, S, data.train_images, indices, 9, np.random.default_rng(0))
    (dS,) = torch.autograd.grad(loss, S)
    B = Batches([data.of_class(c) for c in range(3)], [lambda x: x] * 3, None, None)
    weights, labels = torch.full((3,), 1 / 3, dtype=torch.float64), torch.arange(3).repeat_interleave(2)
    expected, dS_expected, _, _ = match(network, S, labels, B, weights, recipe, 0, Memory(9))
    assert loss.item() == pytest.approx(expected, rel=1e-8) and dS.abs().max() > 1e-3
    torch.testing.assert_close(dS, dS_expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", RECIPES)
def test_a_plain_outer_iteration_is_the_librarys(data, method):
    recipe, network, S = starting(data, method)
    expected = gm.condense(data, recipe, "cpu", progress=False)
    before, optimise_S = S.detach().clone(), torch.optim.SGD([S], lr=recipe.lr_images, momentum=recipe.momentum_images)
    indices = plain.indices_by_class(data.train_labels)
    loss = plain.outer_iteration(
        method, network, S, optimise_S, data.train_images, indices, T=3, zeta=2, batch=9, rng=np.random.default_rng(0)
    )
    assert loss == pytest.approx(expected.history[0]["loss"], rel=1e-8)
    assert (S.detach() - before).abs().max() > 1e-3
    torch.testing.assert_close(S.detach(), expected.images, rtol=1e-8, atol=1e-8)


def test_plain_schedules_are_those_of_the_paper():
    for method, recipe in RECIPES.items():
        assert [plain.steps(method, t, 7) for t in range(50)] == [where.steps(recipe["where"], t, 7) for t in range(50)]


def test_plain_batches_are_of_one_class_without_replacement():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0])
    indices = plain.indices_by_class(labels)
    assert indices == [[1, 3, 6], [2], [0, 4, 5]]
    images, rng = torch.arange(7.0), np.random.default_rng(0)
    drawn = [tuple(plain.batch_of_class(images, indices[2], 2, rng).tolist()) for _ in range(60)]
    assert set(drawn) == {(a, b) for a in (0, 4, 5) for b in (0, 4, 5) if a != b}
    assert sorted(plain.batch_of_class(images, indices[0], 9, rng).tolist()) == [1, 3, 6]


def test_plain_training_and_test_are_the_librarys(data):
    _, network, S = starting(data, "DC")
    S, labels = S.detach(), torch.arange(3).repeat_interleave(2)
    expected = networks.fit(copy.deepcopy(network), S, labels, epochs=5, rng=torch.Generator())
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
def test_plain_operations_are_the_librarys(channels):
    # A border of the value that comes in from outside: SciPy lets nothing of it in beyond the last pixel's middle, torch does.
    x = torch.full((1, channels, 13, 13), 0.25, dtype=torch.float64)
    x[..., 4:9, 4:9] = torch.rand(channels, 5, 5, generator=torch.Generator().manual_seed(0))
    image, fill = x[0].numpy(), np.full((channels, 1, 1), 0.25)

    def one(v):
        return torch.tensor([v], dtype=torch.float64 if isinstance(v, float) else None)

    pairs = [
        *((plain.crop(image, d, r, fill), augment._moved(x, one(d), one(r), 0.25)) for d, r in ((0, 0), (4, -4), (-3, 1))),
        *((plain.scale(image, f, fill), augment._resized(x, one(1 / f), one(1 / f), 0.25)) for f in (1.0, 0.8, 1.2)),
        *((plain.rotate(image, a, fill), augment._turned(x, one(math.radians(a)), 0.25)) for a in (0.0, 45.0, -20.0)),
    ]
    for i, (found, expected) in enumerate(pairs):
        np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-8)
        assert np.allclose(found, image, atol=1e-12) == (i % 3 == 0)  # only the first of each changes nothing


def test_plain_augmentation_varies_each_image_by_itself():
    x = torch.rand(40, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    y = plain.augmented(x, np.random.default_rng(0))
    assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all()
    assert y.min() >= x.min() - 1e-6 and y.max() <= x.max() + 1e-6  # pixels, their averages and the mean
    assert sum(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) >= 38
    assert torch.equal(y, plain.augmented(x, np.random.default_rng(0)))
    same = plain.augmented(torch.ones(12, 2, 9, 9), np.random.default_rng(0))
    torch.testing.assert_close(same, torch.ones_like(same))  # what comes in is the mean of the channel


# ---- the ceiling ------------------------------------------------------------------------------------------


def test_work_of_a_convnet_counted_by_hand():
    n, network = 5, networks.build("convnet", (3, 8, 8), 10, width=4, depth=2, generator=torch.Generator())
    # A 3x3 convolution has out * in * 9 products at every pixel, the second one sees 4x4 pixels, the linear layer 4 * 2 * 2.
    first, second, linear = 4 * 3 * 9 * 64, 4 * 4 * 9 * 16, 16 * 10
    forward = ceiling.work(ceiling.forward, network, n, (3, 8, 8))
    gradient = ceiling.work(ceiling.gradient, network, n, (3, 8, 8))
    assert forward.flops == 2 * n * (first + second + linear)
    # Backward once more for the weights, and for the inputs of all layers but the first.
    assert gradient.flops == 2 * n * (2 * first + 3 * second + 3 * linear)
    images, weights = n * (3 * 64 + 4 * 64 + 4 * 16 + 4 * 16 + 16 + 10), 4 * 3 * 9 + 4 + 4 * 4 * 9 + 4 + 160 + 10
    assert forward.bytes == 4 * (images + weights)


def test_work_of_a_second_derivative_counted_by_hand():
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    # Five products of 8 x 3 for each image: z = Wx, g = dz x'; then v'dz and vx from g, and W'(d dz) from z.
    assert ceiling.work(ceiling.derivative, network, 7, (2, 2, 2)).flops == 5 * 2 * 7 * 8 * 3


def test_the_ceiling_is_the_slower_of_the_two():
    machine = ceiling.Machine({"float32": 100.0, "tf32": 1000.0}, 10.0)
    a, b = ceiling.Work(200.0, 5.0), ceiling.Work(0.0, 25.0)
    assert a.seconds(machine) == 2.0 and b.seconds(machine) == 2.5
    assert (3 * a + b) == ceiling.Work(600.0, 40.0) and (3 * a + b).seconds(machine, "tf32") == 4.0


def test_rates_are_operations_and_bytes_by_seconds(monkeypatch, small_machine):
    assert min(ceiling.measure(CPU, 1e-3).products["float32"], ceiling.measure(CPU, 1e-3).copying) > 1e6
    monkeypatch.setattr(ceiling, "_best", lambda device, call, seconds: 0.5)
    assert ceiling.measure(CPU) == ceiling.Machine({"float32": 2 * 64**3 / 0.5}, 2 * 2**12 / 0.5)


def test_tf32_is_set_for_a_while():
    def settings():
        matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
        assert (matmul.fp32_precision == "tf32", convolution.conv.fp32_precision == "tf32") == (
            matmul.allow_tf32,
            convolution.allow_tf32,
        )
        return matmul.allow_tf32, convolution.allow_tf32

    before = settings()
    for tf32 in (True, False):
        with ceiling.precision(tf32):
            assert settings() == (tf32, tf32)
    assert settings() == before


# ---- the run ----------------------------------------------------------------------------------------------


def test_a_case_is_measured_and_stored(tmp_path, capsys, small_machine):
    out = tmp_path / "new" / "bench.json"
    arguments = ["--quick", "--cases", "*/1x8x8/C3/ipc1*", "--repeats", "2", "--out", str(out), "--device", "cpu"]
    assert bench.main(arguments) == 0
    stored, lines = json.loads(out.read_text()), capsys.readouterr().out.splitlines()
    names = {name.split("/")[0] for name in stored["cases"]}
    assert names == {"step", "outer", "train", "evaluate"} and len(stored["cases"]) == 8
    assert stored["environment"]["torch"] == torch.__version__ and stored["environment"]["threads"] == torch.get_num_threads()
    assert {"commit", "device_name"} <= set(stored["environment"]) and stored["machine"]["copying"] > 0
    for name, case in stored["cases"].items():
        (line,) = (line for line in lines if line.startswith(name + " "))
        assert f"{case['ours']:.4g}" in line and f"{case['ratio']:.2f}" in line and line.endswith(case["unit"])
        assert len(case["seconds_ours"]) == len(case["seconds_plain"]) == case["repeats"] == 2
        assert case["ours"] == pytest.approx(sum(case["seconds_ours"]) / 2)
        assert case["ratio"] == pytest.approx(case["plain"] / case["ours"]) and case["flops"] > 0 and case["bytes"] > 0
    assert "2 networks (1 plain), 2 epochs" in stored["cases"]["train/1x8x8/C3/ipc1/varied"]["unit"]


@pytest.mark.parametrize("pattern", ["pass/1x8x8/C3", "test/3x8x8", "growth/T/2"])
def test_the_other_cases_run(pattern, tmp_path, small_machine):
    stored = bench.run(pattern, repeats=1, quick=True, out=tmp_path / "b.json", device="cpu")
    assert stored["cases"][pattern]["ratio"] > 0


def test_an_outer_iteration_counts_its_parts():
    size = bench.replace(bench.TOY, T=3, zeta=2)
    one_pass = ceiling.work(ceiling.gradient, bench._network(size), 3, size.shape)
    for method, theta_steps in (("DC", 2 + 2), ("MDA", 50 + 40)):
        found = bench.outer_work(size, bench.recipe_of(size, method))
        assert found == 3 * bench.step_work(size) + theta_steps * one_pass


def made_up_pair(log, ours=lambda: None, plain=lambda: None, flops=1.0):
    def side(name, call, seconds):
        def measured():
            log.append(name)
            call()
            return seconds.pop(0)

        return measured

    one = ceiling.Work(flops, 0.0)
    seconds = {"ours": [9.0, 1.0, 2.0, 4.0], "plain": [9.0, 6.0, 5.0, 8.0]}
    return bench.Pair(side("ours", ours, seconds["ours"]), side("plain", plain, seconds["plain"]), one, 2 * one, "a thing")


def test_sides_take_turns_and_first_calls_do_not_count():
    log, machine = [], ceiling.Machine({"float32": 2.0}, 1.0)
    found = bench.measure(lambda device: made_up_pair(log), CPU, machine, repeats=3, seconds=60)
    assert log == ["ours", "plain", "plain", "ours", "ours", "plain", "plain", "ours"]
    assert found["seconds_ours"] == [1.0, 2.0, 4.0] and (found["ours"], found["plain"], found["ratio"]) == (2.0, 6.0, 3.0)
    assert found["ceiling"] == 0.5 and found["fraction_of_ceiling"] == 0.25


def test_what_does_not_fit_is_not_run_and_says_so(monkeypatch):
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
    missing = found(9.0, plain=fail)[0]
    assert missing["not_run"] == "plain ran out of memory"
    assert bench.row("case", missing).endswith("not run: plain ran out of memory")


def test_names_tell_the_cases_of_a_plan():
    full = bench.cases(bench.PLANS["cuda"])
    assert list(full) == list(bench.cases(bench.PLANS["cpu"]))
    ipcs, kinds = (1, 10, 50), ("1x28x28/C10", "3x32x32/C10", "3x32x32/C100")
    wanted = {f"step/{m}/{kind}/ipc{n}" for m in RECIPES for kind in kinds for n in ipcs}
    wanted |= {f"outer/{m}-beside-DC/{kind}/ipc{n}" for m in RECIPES for kind in kinds[:2] for n in ipcs}
    wanted |= {
        f"{phase}/1x28x28/C10/ipc{n}/{how}" for phase in ("train", "evaluate") for n in ipcs for how in ("as-is", "varied")
    }
    wanted |= {"growth/C/100", "growth/ipc/50", "growth/B/256", "growth/width/256", "growth/T/10"}
    assert wanted <= set(full)
    assert len(list(bench._cases(bench.PLANS["cuda"]))) == len(full)  # no name twice


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--cases", "nothing"], "no case fits 'nothing': choose from pass/1x8x8/C3, "),
        (["--repeats", "0"], "repeats=0 does not fit: give a whole number of at least 1"),
        (["--seconds", "0"], "seconds=0.0 does not fit: give a positive number"),
        (["--out", "table.csv"], "the output table.csv does not fit: give a file that ends in .json"),
        (["--device", "cpu", "--tf32"], "TF32 is of CUDA devices, and this is cpu: leave out --tf32"),
        (["--device", "cudax"], "the device 'cudax' cannot be used here"),
    ],
)
def test_bad_input_is_one_sentence(arguments, reason, capsys):
    assert bench.main(["--quick", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"bench: {reason}") and said.err.count("\n") == 1 and not said.out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_kind_of_case_runs_on_cuda(tmp_path):
    stored = bench.run("*/1x8x8*", repeats=1, quick=True, out=tmp_path / "b.json", device="cuda", tf32=True)
    assert set(stored["machine"]["products"]) == {"float32", "tf32"} and all("ours" in case for case in stored["cases"].values())
