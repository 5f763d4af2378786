"""Phase 1 as a caller sees it: repeatable, resumable, safe, and worth it on real digits."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import make_data, tiny_recipe

import gmlib as gm
from gmlib import how
from gmlib.analysis.matching import losses_along
from gmlib.lines import fresh_network, initial
from gmlib.runtime import OutOfTime, generator


def condense(data, recipe, **options):
    return gm.condense(data, recipe, device="cpu", progress=False, **options)


def test_same_seed_same_bits_another_seed_others():
    data = make_data(dtype=torch.float32)
    runs = [condense(data, tiny_recipe(seed=seed, inner_loops=2, zeta_theta=3)) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].images, runs[1].images)
    assert not torch.equal(runs[0].images, runs[2].images)


def test_nothing_depends_on_the_callers_random_state():
    data = make_data(dtype=torch.float32)
    torch.manual_seed(1)
    one = condense(data, tiny_recipe())
    torch.manual_seed(2)
    assert torch.equal(one.images, condense(data, tiny_recipe()).images)


def test_methods_with_one_seed_start_alike():
    data = make_data()
    starts = [initial(data, tiny_recipe(ipc=2, inner_loops=1, zeta_theta=1, what=w)) for w in ("intra", "multi")]
    assert torch.equal(*starts)
    assert starts[0].shape == (6, 1, 8, 8)
    assert abs(starts[0].mean()) < 0.2 and abs(starts[0].std() - 1) < 0.2


def test_init_real_takes_images_of_each_class():
    data = make_data()
    S0 = initial(data, tiny_recipe(ipc=3, init="real", inner_loops=1, zeta_theta=1))
    for c, images in enumerate(S0.split(3)):
        for image in images:
            assert (data.of_class(c) == image).flatten(1).all(1).any()
    assert len({image.numpy().tobytes() for image in S0}) == 9, "without replacement"


def test_the_set_and_its_history():
    data = make_data((6, 5, 7))
    recipe = tiny_recipe(ipc=2, inner_loops=3, zeta_theta=4, outer_loops=3)
    S = condense(data, recipe, snapshots=(0, 1, 3))
    assert S.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert S.recipe == recipe.as_dict() and S.classes == data.classes
    assert [h["k"] for h in S.history] == [0, 1, 2]
    assert all(h["theta_steps"] == 8 and h["loss"] > 0 and h["detections"] == [] for h in S.history)
    assert list(S.snapshots) == [0, 1, 3]
    assert torch.equal(S.snapshots[0], initial(data, recipe))
    assert torch.equal(S.snapshots[3], S.images)
    one = condense(data, tiny_recipe(ipc=2, inner_loops=3, zeta_theta=4, outer_loops=1))
    assert torch.equal(S.snapshots[1], one.images)


def test_more_condensed_images_than_a_batch_are_stepped_through_in_batches():
    data = make_data()
    whole, halves = (
        condense(data, tiny_recipe(ipc=4, inner_loops=2, zeta_theta=1, batch_theta=b)).images for b in (12, 6)
    )
    assert not torch.equal(whole, halves)


# ---- stopping and going on


def test_going_on_from_a_checkpoint_is_bit_identical(tmp_path):
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(outer_loops=6, inner_loops=2, zeta_theta=2)
    whole = condense(data, recipe, snapshots=(1, 4))
    path = tmp_path / "checkpoint.safetensors"
    for done in (
        0,
        1,
        1,
    ):  # stopped inside an outer iteration (after one of its two inner ones), after it, and inside the next
        with pytest.raises(
            OutOfTime, match=f"out of time after {done} of 6 outer iterations: run again to go on from"
        ):
            condense(data, recipe, snapshots=(1, 4), checkpoint=path, deadline=time.monotonic())
    parts = condense(data, recipe, snapshots=(1, 4), checkpoint=path)
    assert torch.equal(parts.images, whole.images)
    assert [h["loss"] for h in parts.history] == [h["loss"] for h in whole.history]
    assert all(torch.equal(parts.snapshots[k], whole.snapshots[k]) for k in (1, 4))
    again = condense(data, recipe, checkpoint=path)
    assert torch.equal(again.images, whole.images), "a finished checkpoint gives the set at once"


@pytest.mark.parametrize("network", ["convnet", "convnet:norm=batch"])
def test_stopped_after_every_inner_iteration_it_ends_the_same(network, tmp_path):
    """theta, its momentum and its BatchNorm statistics go on too: one inner iteration for each start."""
    data = make_data(dtype=torch.float32)
    recipe = tiny_recipe(
        network=network, ipc=2, what="multi", where="overfit", outer_loops=2, inner_loops=3, lr_network=0.3, zeta_S=2,
        momentum_network=0.9,
    )  # fmt: skip
    whole = condense(data, recipe, snapshots=(0, 1))
    assert any(h["detections"] for h in whole.history), "overfitting is seen, so that there is something to keep"
    path, starts = tmp_path / "checkpoint.safetensors", 0
    while starts < 6:
        starts += 1
        try:
            parts = condense(data, recipe, snapshots=(0, 1), checkpoint=path, deadline=time.monotonic())
            break
        except OutOfTime:
            pass
    assert starts == 6, "two outer iterations of three inner ones"
    assert torch.equal(parts.images, whole.images)
    timeless = [[{**h, "seconds": 0} for h in S.history] for S in (parts, whole)]
    assert timeless[0] == timeless[1]
    assert all(torch.equal(parts.snapshots[k], whole.snapshots[k]) for k in (0, 1))


def test_watching_changes_nothing_and_sees_every_step():
    data = make_data(dtype=torch.float32)
    recipe = tiny_recipe(ipc=2, outer_loops=2, inner_loops=3, zeta_theta=4)
    seen = []
    S = condense(data, recipe, watch=lambda k, t, i, losses: seen.append((k, t, i, *losses)))
    assert torch.equal(S.images, condense(data, recipe).images)
    assert [s[:3] for s in seen] == [(k, t, i) for k in range(2) for t in range(2) for i in range(5)]
    table = losses_along(data, recipe, "cpu", False)
    assert table.columns.tolist() == ["k", "t", "i", "loss_S", "loss_T"]
    assert [tuple(row) for row in table.itertuples(index=False)] == seen
    # the losses of theta_0 of the first outer iteration, by hand
    network = fresh_network(data, recipe, 0)
    one = condense(data, tiny_recipe(ipc=2, outer_loops=1, inner_loops=1, zeta_theta=4))
    assert seen[0][3] == pytest.approx(
        torch.nn.functional.cross_entropy(network(one.images), one.labels).item(), rel=1e-6
    )
    x, y = data.sample_any(256, generator(recipe.seed, "validation", 0, 0))
    assert seen[0][4] == pytest.approx(torch.nn.functional.cross_entropy(network(x), y).item(), rel=1e-6)


KILLED = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from conftest import make_data, tiny_recipe
import gmlib as gm
torch.set_num_threads(1)
recipe = tiny_recipe(outer_loops=10, inner_loops=30, zeta_theta=2)  # most kills fall inside an outer iteration
print("ready", flush=True)
S = gm.condense(make_data(dtype=torch.float32), recipe, "cpu", sys.argv[1], False, checkpoint_seconds=0.0)
S.save(sys.argv[3])
"""


def test_killed_at_any_moment_and_started_again_it_ends_the_same(tmp_path):
    """SIGKILL at four random moments of a real process; no temporary file, no damage, the same bits at the end."""
    tests = str(Path(__file__).parent)

    def start(name):
        command = [sys.executable, "-c", KILLED, str(tmp_path / name), tests, str(tmp_path / f"{name}-set")]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    with start("a") as undisturbed:
        assert undisturbed.wait(timeout=300) == 0
    kills, random = 0, Random(0)
    for moment in (random.uniform(0.1, 0.7) for _ in range(4)):
        with start("b") as process:
            process.stdout.readline()  # imports done
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert kills, "at least one kill must hit a running process"
    with start("b") as process:
        assert process.wait(timeout=300) == 0
    a, b = (gm.SyntheticSet.load(tmp_path / f"{name}-set") for name in "ab")
    assert torch.equal(a.images, b.images)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused_and_kept(tmp_path):
    data, path = make_data(dtype=torch.float32), tmp_path / "checkpoint.safetensors"
    condense(data, tiny_recipe(), checkpoint=path)
    before = path.read_bytes()
    for other_data, other, values in (
        (data, tiny_recipe(seed=1), "seed=0 instead of 1"),
        (make_data(seed=9, dtype=torch.float32), tiny_recipe(), "other data"),
        (
            make_data(dtype=torch.float64),
            tiny_recipe(),
            "dtype='torch.float32' instead of 'torch.float64'|other data",
        ),
    ):
        with pytest.raises(
            ValueError, match=rf"is of another run, with ({values}): delete it or choose another file"
        ):
            condense(other_data, other, checkpoint=path)
        assert path.read_bytes() == before
    for length in (0, 5, 40, len(before) // 2, len(before) - 1):
        path.write_bytes(before[:length])
        with pytest.raises(ValueError, match=r"is damaged \(.*\): delete it to start the run afresh"):
            condense(data, tiny_recipe(), checkpoint=path)
        assert path.read_bytes() == before[:length]
    gm.coreset("random", data, 1).save(path)
    with pytest.raises(ValueError, match="is not a checkpoint of gmlib: choose another file"):
        condense(data, tiny_recipe(), checkpoint=path)
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        condense(data, tiny_recipe(), checkpoint=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"folder of the checkpoint .* does not exist: make it first"):
        condense(data, tiny_recipe(), checkpoint=tmp_path / "nowhere" / "checkpoint")


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    """The third write fails as on a full disk: one sentence, the second checkpoint untouched, and the run goes on from it."""
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(outer_loops=5)
    whole = condense(data, recipe)
    path, writes = tmp_path / "checkpoint.safetensors", []

    def full(handle, fsync=os.fsync):
        if len(writes) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        writes.append(path.read_bytes() if path.exists() else b"")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            OSError, match=r"cannot write .*checkpoint\.safetensors \(No space left on device\): free some space"
        ):
            condense(data, recipe, checkpoint=path, checkpoint_seconds=0.0)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"], "no half-written file is left"
    assert path.read_bytes() != writes[1], "the second checkpoint is there, not the first"
    assert torch.equal(condense(data, recipe, checkpoint=path).images, whole.images)


# ---- what it refuses, before any work


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dataset": "MNIST"}, "the recipe is for 'MNIST' but the data are 'made-up'"),
        (
            {"ipc": 13, "inner_loops": 1, "zeta_theta": 1},
            "ipc=13 does not fit made-up: give a whole number from 1 to 12",
        ),
        ({"depth": 4}, "too small for a ConvNet of depth 4"),
    ],
)
def test_a_recipe_that_does_not_fit_writes_nothing(change, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        condense(make_data(), tiny_recipe(**change), checkpoint=tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_arguments_in_the_wrong_order():
    with pytest.raises(ValueError, match="condense takes data and a recipe, not Recipe and Data"):
        condense(tiny_recipe(), make_data())
    with pytest.raises(ValueError, match="give the coreset's name and then data, not Data and str"):
        gm.coreset(make_data(), "random", 1)
    S = gm.coreset("random", make_data(), 1)
    for pair, kinds in (
        ((make_data(), S), "a Data and a SyntheticSet"),
        (("a.safetensors", make_data()), "a str and a Data"),
    ):
        with pytest.raises(
            ValueError, match=f"give a SyntheticSet, or a Data, and then the Data it goes with, not {kinds}"
        ):
            gm.evaluate(*pair)
    with pytest.raises(ValueError, match="eps is a Data: give thresholds"):
        gm.reach(gm.coreset("random", make_data(), 1), make_data())


def test_data_and_sets_print_on_a_line():
    data = make_data((6, 5, 7))
    assert repr(data) == "Data(made-up: 18 + 9 images of (1, 8, 8), 3 classes)"
    assert repr(gm.coreset("random", data, 2)) == "SyntheticSet(6 images of (1, 8, 8), 2 for each of 3 classes)"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_checkpoint_that_cannot_be_written_is_told_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(
        PermissionError, match=r"the folder of the checkpoint .* cannot be written to: choose another"
    ):
        condense(make_data(), tiny_recipe(outer_loops=10**6), checkpoint=tmp_path / "checkpoint")


def test_snapshots_outside_the_run():
    with pytest.raises(ValueError, match="snapshots=3 does not fit: give a list of numbers of outer iterations"):
        condense(make_data(), tiny_recipe(), snapshots=3)
    with pytest.raises(ValueError, match=r"snapshot 3 is outside 0\.\.2"):
        condense(make_data(), tiny_recipe(), snapshots=[3])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(outer_loops=3, inner_loops=2, zeta_theta=1)
    calls = []

    def poisoned(A, B, *, eps=1e-8, d1=how.d1):
        calls.append(A.shape)
        return d1(A, B, eps=eps) * (float("nan") if len(calls) > 18 and A.shape[-1] == 36 else 1.0)  # width 4: conv 2

    monkeypatch.setitem(how.DISTANCES, "d1", poisoned)
    path = tmp_path / "run.safetensors"
    with pytest.raises(gm.Diverged) as error:
        condense(data, recipe, checkpoint=path)
    # three layers, twice for each update (both levels): the 19th call opens the fourth update, k = 1, t = 1
    assert (error.value.k, error.value.t, error.value.layer) == (1, 1, "4.weight")
    assert "k=1, t=1, layer 4.weight" in str(error.value)
    rescued = gm.SyntheticSet.load(tmp_path / "run-last-good.safetensors")
    assert torch.equal(rescued.images, error.value.S.images)
    assert rescued.images.isfinite().all()


def test_an_update_that_overflows_stops_the_run_with_the_last_good_set():
    data = make_data(dtype=torch.float32)
    with pytest.raises(gm.Diverged, match="lower lr_images or lr_network") as error:
        condense(data, tiny_recipe(how="d2", lr_images=1e38, outer_loops=50))
    assert error.value.S.images.isfinite().all()


# ---- real data


def test_condensed_digits_beat_random_ones_by_far(digits):
    """One image per class, smoke budget: the worst of three condensed sets against the best of ten random ones."""
    protocol = {"n_networks": 5, "epochs": 100, "device": "cpu", "progress": False}
    condensed = []
    for seed in range(3):
        recipe = gm.Recipe.for_method("M", ipc=1, budget="smoke", seed=seed)
        condensed.append(gm.evaluate(condense(digits, recipe), digits, seed=seed, **protocol).mean)
    size = {"width": recipe.width, "depth": recipe.depth}
    chosen = [
        gm.evaluate(gm.coreset("random", digits, 1, s), digits, seed=s, **size, **protocol).mean for s in range(10)
    ]
    assert min(condensed) > max(chosen)
    assert sum(condensed) / 3 - sum(chosen) / 10 > 12, json.dumps([condensed, chosen])
