"""Phase 1: condense is repeatable, can be continued, stops safely, and its sets beat random images."""

import errno
import json
import math
import os
import time
from dataclasses import replace

import pytest
import torch
from conftest import kill_and_continue, make_data, tiny_recipe
from messages import refuses

import gmlib as gm
from gmlib import how
from gmlib.algorithm import State, algorithm_1
from gmlib.analysis.matching import losses_along
from gmlib.checkpoint import FORMAT, Checkpoint, OuterIteration, Progress
from gmlib.files import read_tensors, write_tensors
from gmlib.lines import fresh_network, initial
from gmlib.runtime import OutOfTime, generator


def condense(data, recipe, **options):
    return gm.condense(data, recipe, device="cpu", progress=False, **options)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    data = make_data(dtype=torch.float32)
    runs = [condense(data, tiny_recipe(seed=seed, inner_loops=2, zeta_theta=3)) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].images, runs[1].images)
    assert not torch.equal(runs[0].images, runs[2].images)


def test_the_callers_random_state_has_no_effect():
    data = make_data(dtype=torch.float32)
    torch.manual_seed(1)
    one = condense(data, tiny_recipe())
    torch.manual_seed(2)
    assert torch.equal(one.images, condense(data, tiny_recipe()).images)


def test_methods_with_the_same_seed_start_from_the_same_noise():
    data = make_data()
    intra, multi = (
        initial(data, tiny_recipe(ipc=2, inner_loops=1, zeta_theta=1, what=w)) for w in ("intra", "multi")
    )
    assert torch.equal(intra, multi)
    assert intra.shape == (6, 1, 8, 8)
    assert abs(intra.mean()) < 0.2 and abs(intra.std() - 1) < 0.2


def test_init_real_takes_different_images_of_each_class():
    data = make_data()
    S0 = initial(data, tiny_recipe(ipc=3, init="real", inner_loops=1, zeta_theta=1))
    for c, images in enumerate(S0.split(3)):
        for image in images:
            assert (data.of_class(c) == image).flatten(1).all(1).any()
    assert len({image.numpy().tobytes() for image in S0}) == 9, "without replacement"


def test_set_history_and_snapshots():
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


def test_theta_takes_mini_batches_of_S_if_S_is_larger_than_a_batch():
    data = make_data()
    recipe = tiny_recipe(ipc=4, inner_loops=2, zeta_theta=1, batch_theta=12)
    whole, halves = (condense(data, replace(recipe, batch_theta=n)).images for n in (12, 6))
    assert not torch.equal(whole, halves)


# ---- continuing

CONTINUED = {
    "adaptive": {"what": "multi", "where": "adaptive"},
    "interleaved": {"what": "interleaved", "where": "fixed", "zeta_theta": 2},
    "overfit": {"what": "multi", "where": "overfit", "lr_network": 0.3, "momentum_network": 0.9},
}


def continued(name):
    return make_data(dtype=torch.float32), tiny_recipe(ipc=2, outer_loops=2, inner_loops=3, **CONTINUED[name])


def bits(state):
    """Everything in a state that later iterations depend on."""
    values = [state.S, state.optimiser_S.state[state.S]["momentum_buffer"]]
    if state.t:  # else line 3 draws a new theta
        values += [*state.theta.parameters(), *state.theta.buffers()]
        values += [state.optimiser_theta.state[p]["momentum_buffer"] for p in state.theta.parameters()]
    return (state.k, state.t), [value.detach().clone() for value in values]


def equal_bits(a, b):
    return a[0] == b[0] and len(a[1]) == len(b[1]) and all(map(torch.equal, a[1], b[1]))


def whole_run(data, recipe):
    """What one generator gives after every inner iteration: the bits of the state, the losses and the detection."""
    state = State.initial(data, recipe)
    return [(bits(state), *outcome(update)) for update in algorithm_1(data, recipe, state)]


def outcome(update):
    return [loss.item() for loss in update.losses], update.path and update.path.detection


@pytest.mark.parametrize("steps", ["called", "recorded"])
@pytest.mark.parametrize("name", CONTINUED)
def test_a_new_generator_continues_from_any_state_with_the_same_bits(name, steps, request):
    if steps == "recorded":
        request.getfixturevalue("recorded")
    data, recipe = continued(name)
    whole = whole_run(data, recipe)
    assert len(whole) == 6
    assert any(detection for *_, detection in whole) == (name == "overfit")
    state = State.initial(data, recipe)
    for expected_bits, *expected in whole:
        update = next(algorithm_1(data, recipe, state))  # a new generator for each inner iteration
        assert equal_bits(bits(state), expected_bits)
        assert list(outcome(update)) == expected
    assert list(algorithm_1(data, recipe, state)) == [], "the run is complete"


def so_far(state):
    """A run in this state, with some history."""
    history = [{"k": k, "loss": 1.0, "theta_steps": 0, "seconds": 0.0, "detections": []} for k in range(state.k)]
    return Progress(state, history, [OuterIteration(state.k, [1.0] * state.t, theta_steps=state.t)])


@pytest.mark.parametrize("steps", ["called", "recorded"])
@pytest.mark.parametrize("name", CONTINUED)
def test_a_state_written_inside_an_outer_iteration_continues_with_the_same_bits(name, steps, tmp_path, request):
    if steps == "recorded":
        request.getfixturevalue("recorded")
    data, recipe = continued(name)
    whole = whole_run(data, recipe)
    state = State.initial(data, recipe)
    for n, _ in enumerate(algorithm_1(data, recipe, state), start=1):
        path = tmp_path / f"{n}.safetensors"
        Checkpoint(path, data, [recipe]).write([so_far(state)])
        (read,) = (run.state for run in Checkpoint(path, data, [recipe]).progress(data))
        assert equal_bits(bits(read), whole[n - 1][0])
        for _ in algorithm_1(data, recipe, read):
            pass
        assert equal_bits(bits(read), whole[-1][0])


def test_continuing_from_a_checkpoint_gives_the_same_set(tmp_path):
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(outer_loops=6, inner_loops=2, zeta_theta=2)
    whole = condense(data, recipe, snapshots=(1, 4))
    path = tmp_path / "checkpoint.safetensors"
    for finished in (0, 1, 1):  # each call does one of the two inner iterations of an outer one
        with pytest.raises(OutOfTime, match=f"after {finished} of 6"):
            condense(data, recipe, snapshots=(1, 4), checkpoint=path, deadline=time.monotonic())
    parts = condense(data, recipe, snapshots=(1, 4), checkpoint=path)
    assert torch.equal(parts.images, whole.images)
    assert [h["loss"] for h in parts.history] == [h["loss"] for h in whole.history]
    assert all(torch.equal(parts.snapshots[k], whole.snapshots[k]) for k in (1, 4))
    again = condense(data, recipe, checkpoint=path)
    assert torch.equal(again.images, whole.images), "the checkpoint of a complete run gives its set"


@pytest.mark.parametrize("network", ["convnet", "convnet:norm=batch"])
def test_a_run_stopped_after_every_inner_iteration_gives_the_same_set(network, tmp_path):
    """A checkpoint also keeps theta, its momentum and its BatchNorm statistics."""
    data = make_data(dtype=torch.float32)
    recipe = tiny_recipe(
        network=network,
        ipc=2,
        what="multi",
        where="overfit",
        outer_loops=2,
        inner_loops=3,
        zeta_S=2,
        lr_network=0.3,
        momentum_network=0.9,
    )
    whole = condense(data, recipe, snapshots=(0, 1))
    assert any(h["detections"] for h in whole.history), "without detections their storage is not tested"
    path = tmp_path / "checkpoint.safetensors"
    for _ in range(5):  # of six inner iterations
        with pytest.raises(OutOfTime):
            condense(data, recipe, snapshots=(0, 1), checkpoint=path, deadline=time.monotonic())
    parts = condense(data, recipe, snapshots=(0, 1), checkpoint=path, deadline=time.monotonic())
    assert torch.equal(parts.images, whole.images)
    timeless = [[{**h, "seconds": 0} for h in S.history] for S in (parts, whole)]
    assert timeless[0] == timeless[1]
    assert all(torch.equal(parts.snapshots[k], whole.snapshots[k]) for k in (0, 1))


def test_watching_changes_no_bit_and_measures_every_theta():
    data = make_data(dtype=torch.float32)
    recipe = tiny_recipe(ipc=2, outer_loops=2, inner_loops=3, zeta_theta=4)
    state, rows = State.initial(data, recipe), []
    for update in algorithm_1(data, recipe, state, watch=True):
        path = update.path.losses if update.path else []
        rows += [(update.k, update.t, i, *losses) for i, losses in enumerate(path)]
    assert torch.equal(state.S, condense(data, recipe).images)
    assert [row[:3] for row in rows] == [(k, t, i) for k in range(2) for t in range(2) for i in range(5)]

    table = losses_along(data, recipe, "cpu", False)
    assert table.columns.tolist() == ["k", "t", "i", "loss_S", "loss_T"]
    assert [tuple(row) for row in table.itertuples(index=False)] == rows

    # The losses of the first theta_0, by hand.
    theta = fresh_network(data, recipe, 0)
    S_1 = condense(data, tiny_recipe(ipc=2, outer_loops=1, inner_loops=1, zeta_theta=4))
    x, y = data.sample_any(256, generator(recipe.seed, "validation", 0, 0))
    loss_S = torch.nn.functional.cross_entropy(theta(S_1.images), S_1.labels)
    loss_T = torch.nn.functional.cross_entropy(theta(x), y)
    assert rows[0][3:] == pytest.approx((loss_S.item(), loss_T.item()), rel=1e-6)


def test_losses_along_stops_like_condense():
    data = make_data(dtype=torch.float32)
    with pytest.raises(gm.Diverged, match="k=0"):
        losses_along(data, tiny_recipe(ipc=2, inner_loops=3, zeta_theta=1, lr_images=1e30), "cpu", False)
    late = time.monotonic() - 1
    with pytest.raises(OutOfTime, match="more time"):
        losses_along(data, tiny_recipe(ipc=2, inner_loops=2, zeta_theta=1), "cpu", False, late)


ALONE = """
from conftest import tiny_recipe

def work(run, checkpoint, out):
    recipe = tiny_recipe(**eval(run))
    S = gm.condense(make_data(dtype=torch.float32), recipe, "cpu", checkpoint, False, checkpoint_seconds=0.0)
    S.save(out)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork and SIGKILL")
def test_a_killed_run_continues_to_the_same_set(tmp_path):
    """A real process is killed at four random moments. Most of them are inside an outer iteration."""
    run = {"outer_loops": 6, "inner_loops": 20, "zeta_theta": 2}
    checkpoint, out = tmp_path / "checkpoint.safetensors", tmp_path / "set.safetensors"
    ended = kill_and_continue(ALONE, 4, (0.05, 0.4), run, checkpoint, out)
    assert "killed" in ended, "at least one kill must hit a running process"
    whole = condense(make_data(dtype=torch.float32), tiny_recipe(**run))
    assert torch.equal(gm.SyntheticSet.load(out).images, whole.images)


def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(tmp_path):
    data, path = make_data(dtype=torch.float32), tmp_path / "checkpoint.safetensors"
    condense(data, tiny_recipe(), checkpoint=path)
    before = path.read_bytes()
    for other_data, other_recipe, difference in (
        (data, tiny_recipe(seed=1), "seed=0 instead of 1"),
        (make_data(seed=9, dtype=torch.float32), tiny_recipe(), "other data"),
        (make_data(dtype=torch.float64), tiny_recipe(), "float64|other data"),
    ):
        with pytest.raises(ValueError, match=difference):
            condense(other_data, other_recipe, checkpoint=path)
        assert path.read_bytes() == before
    for length in (0, 5, 40, len(before) // 2, len(before) - 1):
        path.write_bytes(before[:length])
        with pytest.raises(ValueError, match="is damaged"):
            condense(data, tiny_recipe(), checkpoint=path)
        assert path.read_bytes() == before[:length]
    gm.coreset("random", data, 1).save(path)
    with pytest.raises(ValueError, match="is a gmlib set, and no gmlib checkpoint: name another"):
        condense(data, tiny_recipe(), checkpoint=path)
    with pytest.raises(ValueError, match="is a folder"):
        condense(data, tiny_recipe(), checkpoint=tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        condense(data, tiny_recipe(), checkpoint=tmp_path / "nowhere" / "checkpoint")


def states(**changes):
    """A change of the state of the run in the metadata of a checkpoint."""

    def spoil(tensors, metadata):
        (state,) = json.loads(metadata["states"])
        inside = changes.get("inside", {})
        merged = state["inside"] | inside if isinstance(inside, dict) else inside
        metadata["states"] = json.dumps([state | changes | {"inside": merged}])

    return spoil


def tensor(name, change):
    """A change of a tensor of a checkpoint. None removes it."""

    def spoil(tensors, metadata):
        tensors[name] = change(tensors[name]) if name in tensors else change
        if tensors[name] is None:
            del tensors[name]

    return spoil


SPOILT = {
    "k": states(k=99),
    "k negative": states(k=-1),
    "k true": states(k=True),
    "t": states(inside={"t": 99}),
    "history": states(history=[]),
    "history null": states(history=None),
    "a loss is a word": states(inside={"losses": ["x", "y"]}),
    "too few losses": states(inside={"losses": []}),
    "inside null": states(inside=None),
    "an unknown key": states(inside={"more": 1}),
    "diverged": states(diverged=["x"]),
    "no momentum of S": tensor("0.momentum", lambda x: None),
    "no S": tensor("0.S", lambda x: None),
    "S of one class": tensor("0.S", lambda x: x[:2].clone()),
    "S in float64": tensor("0.S", lambda x: x.double()),
    "S with NaN": tensor("0.S", lambda x: x * math.nan),
    "momentum of one class": tensor("0.momentum", lambda x: x[:2].clone()),
    "a snapshot of one class": tensor("0.snapshot-1", lambda x: x[:2].clone()),
    "no weight of theta": tensor("0.theta.0.weight", lambda x: None),
    "another weight of theta": tensor("0.theta.0.weight", lambda x: x[:1].clone()),
    "no momentum of theta": lambda tensors, _: [tensors.pop(n) for n in list(tensors) if n.startswith("0.momentum.")],
    "an unknown tensor": tensor("0.more", torch.zeros(1)),
    "no states": lambda _, metadata: metadata.pop("states"),
    "states null": lambda _, metadata: metadata.update(states="null"),
    "states broken": lambda _, metadata: metadata.update(states="["),
    "two states": lambda _, m: m.update(states=json.dumps(json.loads(m["states"]) * 2)),
    "runs null": lambda _, metadata: metadata.update(runs="null"),
    "recipes null": lambda _, metadata: metadata.update(runs='{"recipes": null, "data": "", "dtype": ""}'),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A checkpoint inside the second outer iteration."""
    path = tmp_path_factory.mktemp("stopped") / "checkpoint.safetensors"
    for _ in range(5):
        with pytest.raises(OutOfTime):
            condense(*for_stopped(), checkpoint=path, snapshots=[1], deadline=time.monotonic())
    return path


def for_stopped():
    return make_data(dtype=torch.float32), tiny_recipe(ipc=2, outer_loops=3, inner_loops=3, zeta_theta=1)


@pytest.mark.parametrize("name", SPOILT)
def test_a_checkpoint_that_does_not_fit_its_run_is_damaged(name, stopped, tmp_path):
    """Its digest is right, so only its contents can tell."""
    tensors, metadata = read_tensors(stopped, FORMAT, "")
    assert {"0.S", "0.momentum", "0.snapshot-1", "0.theta.0.weight"} <= set(tensors)
    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, tensors, {key: value for key, value in metadata.items() if key != "sha256"})
    Checkpoint(path, *for_stopped_alone())  # nothing is wrong yet
    SPOILT[name](tensors, metadata)
    write_tensors(path, tensors, {key: value for key, value in metadata.items() if key != "sha256"})
    before = path.read_bytes()
    with refuses(ValueError, str(path), "is damaged", "delete it"):
        condense(*for_stopped(), checkpoint=path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def for_stopped_alone():
    data, recipe = for_stopped()
    return data, [recipe]


def test_a_start_deletes_what_a_killed_write_of_the_checkpoint_left(tmp_path):
    (tmp_path / ".checkpoint.safetensors.0123456789abcdef.tmp").write_bytes(b"half")
    Checkpoint(tmp_path / "checkpoint.safetensors", *for_stopped_alone())
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_json_lacks_is_stored_as_none():
    found = OuterIteration(0, [1.0, 2.0], 3, [[0, 1, math.nan, math.inf], [1, 2, 0.5, 0.25]], 0.1)
    assert found.entry["detections"] == found.so_far["detections"] == [[0, 1, None, None], [1, 2, 0.5, 0.25]]
    assert found.entry["loss"] == 1.5 and "losses" not in found.entry


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    """The third write fails as on a full disk. The second checkpoint is untouched, and the run continues from it."""
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
        with pytest.raises(OSError, match="free some space"):
            condense(data, recipe, checkpoint=path, checkpoint_seconds=0.0)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"], "no temporary file is left"
    assert path.read_bytes() != writes[1], "the second checkpoint, not the first"
    assert torch.equal(condense(data, recipe, checkpoint=path).images, whole.images)


# ---- errors before any work


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "MNIST"}, "'MNIST'.*'made-up'"),
        ({"ipc": 13, "init": "real", "inner_loops": 1, "zeta_theta": 1}, "ipc=13.*from 1 to 12"),
        ({"depth": 4}, "too small.*depth 4"),
    ],
)
def test_a_recipe_that_does_not_fit_writes_nothing(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        condense(make_data(), tiny_recipe(**change), checkpoint=tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_arguments_in_the_wrong_order():
    data = make_data()
    S = gm.coreset("random", data, 1)
    for call, message in (
        (lambda: condense(tiny_recipe(), data), "Recipe.*Data"),
        (lambda: gm.coreset(data, "random", 1), "Data.*str"),
        (lambda: gm.evaluate(data, S), "Data.*SyntheticSet"),
        (lambda: gm.evaluate("a.safetensors", data), "str.*Data"),
        (lambda: gm.reach(S, data), "eps"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_data_and_sets_print_on_one_line():
    data = make_data((6, 5, 7))
    assert repr(data) == "Data(made-up: 18 + 9 images of (1, 8, 8), 3 classes)"
    said = repr(gm.coreset("random", data, 2))
    assert said.startswith("SyntheticSet(6 images of (1, 8, 8), 2 for each of 3 classes, pixels ")
    assert "\n" not in said


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may write everywhere")
def test_a_checkpoint_that_cannot_be_written_stops_the_run_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="not writable"):
        condense(make_data(), tiny_recipe(outer_loops=10**6), checkpoint=tmp_path / "checkpoint")


def test_snapshots_outside_the_run():
    with pytest.raises(ValueError, match="snapshots=3"):
        condense(make_data(), tiny_recipe(), snapshots=3)
    with pytest.raises(ValueError, match="snapshot=3"):
        condense(make_data(), tiny_recipe(), snapshots=[3])


# ---- losses that are not finite


@pytest.mark.parametrize("t", [1, 2])
@pytest.mark.parametrize("steps", ["called", "recorded"])
def test_diverged_names_the_iteration_and_the_layer(steps, t, tmp_path, monkeypatch, request):
    """The loss becomes NaN at k = 1 and t. Losses of recorded steps are read at the end of the outer iteration."""
    if steps == "recorded":
        request.getfixturevalue("recorded")
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(outer_loops=3, inner_loops=3, zeta_theta=1)
    snapshot = condense(data, recipe, snapshots=[1]).snapshots[1]
    calls = []

    def poisoned(A, B, *, eps=1e-8, d1=how.d1):
        calls.append(A.shape)
        # An update calls d1 six times: three layers at two levels. The second convolution has rows of 4*3*3 numbers.
        return d1(A, B, eps=eps) * (math.nan if len(calls) > 6 * (3 + t) and A.shape[-1] == 36 else 1.0)

    monkeypatch.setitem(how.DISTANCES, "d1", poisoned)
    with pytest.raises(gm.Diverged, match=f"k=1, t={t}, layer") as error:
        condense(data, recipe, checkpoint=tmp_path / "run.safetensors")
    assert (error.value.k, error.value.t) == (1, t)
    if steps == "called":  # else a later update is looked at, in which every layer is NaN
        assert error.value.layer == "4.weight"
    rescued = gm.SyntheticSet.load(tmp_path / "run-last-good.safetensors")
    assert torch.equal(rescued.images, error.value.S.images)
    assert rescued.images.isfinite().all()
    assert torch.equal(rescued.images, snapshot) == (steps == "recorded"), "the S of the last reading"


@pytest.mark.parametrize("steps", ["called", "recorded"])
def test_an_update_that_overflows_stops_the_run_with_the_last_good_set(steps, request):
    if steps == "recorded":
        request.getfixturevalue("recorded")
    data = make_data(dtype=torch.float32)
    recipe = tiny_recipe(how="d2", lr_images=1e38, outer_loops=50)
    with pytest.raises(gm.Diverged, match="lr_images") as error:
        condense(data, recipe)
    assert error.value.S.images.isfinite().all()
    assert error.value.layer in dict(fresh_network(data, recipe, 0).named_parameters())


# ---- real data


def test_condensed_digits_beat_random_digits(digits):
    """One image per class, smoke budget: the worse of two condensed sets against the best of four random ones."""
    recipes = [gm.Recipe.for_method("M", ipc=1, budget="smoke", seed=seed) for seed in range(2)]
    protocol = {"n_networks": 2, "epochs": 100, "device": "cpu", "progress": False}
    protocol |= {"width": recipes[0].width, "depth": recipes[0].depth}
    condensed = [gm.evaluate(condense(digits, r), digits, seed=r.seed, **protocol).mean for r in recipes]
    chosen = [gm.evaluate(gm.coreset("random", digits, 1, s), digits, seed=s, **protocol).mean for s in range(4)]
    assert min(condensed) > max(chosen)
    assert sum(condensed) / 2 - sum(chosen) / 4 > 12, (condensed, chosen)


def test_the_set_is_handed_out_while_it_forms():
    data, recipe, seen = make_data(dtype=torch.float32), tiny_recipe(outer_loops=4), []
    S = condense(data, recipe, snapshots=range(5), each=lambda k, S: seen.append((k, S)))
    assert [k for k, _ in seen] == [1, 2, 3, 4]
    for k, then in seen:
        assert torch.equal(then.images, S.snapshots[k]) and len(then.history) == k
    with pytest.raises(ZeroDivisionError):
        condense(data, recipe, each=lambda k, S: 1 / (3 - k))


def test_sets_that_form_together_are_handed_out_with_their_number():
    data, recipes, seen = make_data(dtype=torch.float32), [tiny_recipe(what=what) for what in ("intra", "inter")], []
    sets = gm.condense_together(data, recipes, "cpu", progress=False, each=lambda i, k, S: seen.append((i, k, S)))
    assert [(i, k) for i, k, _ in seen] == [(i, k) for k in range(1, recipes[0].outer_loops + 1) for i in (0, 1)]
    assert all(torch.equal(S.images, sets[i].images) for i, k, S in seen[-2:])
