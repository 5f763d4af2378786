"""condense_together: the same bits as condense, one pass over the real images, one checkpoint, one diverged run."""

import math
import os
import time

import pytest
import torch
from conftest import kill_and_continue, make_data

import gmlib as gm
from gmlib import draws, how, lines
from gmlib.checkpoint import Checkpoint
from gmlib.draws import Draws, groups
from gmlib.runs.cells import methods_of, read_lines
from gmlib.runtime import OutOfTime

# Every method of Tables 1 to 3.
METHODS = sorted(set().union(*(methods_of(table, read_lines()) for table in ("Table 1", "Table 2", "Table 3"))))
METHODS = [m for m in METHODS if m not in gm.CORESETS]


def of_method(method, **overrides):
    tiny = {"width": 4, "depth": 2, "outer_loops": 3, "batch_real": 5}
    return gm.Recipe.for_method(method, "made-up", **{**tiny, **overrides})


def together(data, recipes, **options):
    return gm.condense_together(data, recipes, device="cpu", progress=False, **options)


def alone(data, recipe, **options):
    return gm.condense(data, recipe, device="cpu", progress=False, **options)


def timeless(S):
    return [{**entry, "seconds": 0} for entry in S.history]


def assert_equal(S, expected):
    assert torch.equal(S.images, expected.images)
    assert timeless(S) == timeless(expected)
    assert S.recipe == expected.recipe
    assert S.snapshots.keys() == expected.snapshots.keys()
    assert all(torch.equal(S.snapshots[k], expected.snapshots[k]) for k in S.snapshots)


@pytest.mark.parametrize("steps", ["called", "recorded"])
@pytest.mark.parametrize(
    "many", [{"ipc": 1}, {"ipc": 2, "inner_loops": 3, "zeta_theta": 2, "outer_loops": 2}], ids=["T=1", "T=3"]
)
def test_every_method_gets_the_bits_of_its_own_run(many, steps, request):
    if steps == "recorded":
        request.getfixturevalue("recorded")
    data = make_data(dtype=torch.float32)
    recipes = [of_method(m, **many) for m in METHODS]
    assert len(recipes) == 12
    sets = together(data, recipes, snapshots=(0, 2))
    for S, recipe in zip(sets, recipes, strict=True):
        assert_equal(S, alone(data, recipe, snapshots=(0, 2)))
    differing = len({S.images.numpy().tobytes() for S in sets})
    assert differing == (10 if many["ipc"] == 1 else 12), "with T = 1, MD, MDO and MDA are the same"


@pytest.mark.parametrize("steps", ["called", "recorded"])
@pytest.mark.parametrize(
    "common",
    [
        {"network": "convnet:norm=batch"},
        {"augment": "dsa"},
        {"inter_batches": "sampled"},
        {"zeta_S": 2},
        {"network": "lenet"},
    ],
    ids=str,
)
def test_other_choices_are_shared_too(common, steps, request):
    if steps == "recorded":
        request.getfixturevalue("recorded")
    data = make_data(shape=(1, 16, 16), dtype=torch.float32)
    recipes = [of_method(m, ipc=1, inner_loops=2, zeta_theta=1, **common) for m in ("DC", "MD", "Inter", "MDO")]
    for S, recipe in zip(together(data, recipes), recipes, strict=True):
        assert_equal(S, alone(data, recipe))


def test_recipes_are_grouped_and_keep_their_order(monkeypatch):
    data = make_data(dtype=torch.float32)
    recipes = [
        of_method("DC"),
        of_method("DC", seed=1),
        of_method("M", outer_loops=5),
        of_method("DC", network="mlp"),
        of_method("MD", seed=1, lr_images=0.01),
        of_method("M", batch_real=6),
        of_method("M", ipc=2, inner_loops=1, zeta_theta=1),
        of_method("M", inter_batches="sampled"),
        of_method("M", inter_batches="sampled", ipc=2, inner_loops=1, zeta_theta=1),
    ]
    assert groups(recipes) == [[0, 2, 6], [1, 4], [3], [5], [7], [8]]
    for S, recipe in zip(together(data, recipes), recipes, strict=True):
        assert_equal(S, alone(data, recipe))


def test_the_real_gradients_are_computed_once_for_all(monkeypatch):
    data = make_data(dtype=torch.float32)
    calls = []

    def counted(*arguments, real=lines.real_gradients):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(draws, "real_gradients", counted)
    together(data, [of_method(m, outer_loops=4) for m in METHODS])
    assert len(calls) == 4, "once for each network"
    calls.clear()
    together(data, [of_method(m, ipc=2, inner_loops=3, zeta_theta=1, outer_loops=4) for m in ("DC", "M", "MD")])
    assert len(calls) == 4 * (1 + 3 * 2), "once at t = 0, and by each of three runs at t = 1 and t = 2"


def test_seconds_add_up(monkeypatch):
    """Each run has an equal part of the shared time, and all of its own."""
    data = make_data(dtype=torch.float32)

    def slow(*arguments, real=lines.real_gradients):
        time.sleep(0.3)
        return real(*arguments)

    monkeypatch.setattr(draws, "real_gradients", slow)
    started = time.monotonic()
    sets = together(data, [of_method(m) for m in ("DC", "M", "MD")])
    whole = time.monotonic() - started
    seconds = [sum(entry["seconds"] for entry in S.history) for S in sets]
    assert all(s > 0.3 for s in seconds), seconds  # each has its part of the three
    assert 0.9 < sum(seconds) <= whole


def test_the_thread_draws_what_the_run_needs(recorded):
    """With recorded steps a thread draws ahead: nothing is drawn twice, and nothing is missing at a restart."""
    data = make_data(dtype=torch.float32)
    recipe = of_method("MDA", ipc=2, inner_loops=3, zeta_theta=1)
    drawn = []

    class Counted(Draws):
        def _draw(self, k, t):
            drawn.append((k, t))
            return super()._draw(k, t)

    for k, t in [(k, t) for k in range(3) for t in range(3)]:
        ahead = Counted(data, recipe)  # a new one, as after a restart
        plain = lines.sample(data, recipe, lines.streams_of(recipe, k, t))
        assert torch.equal(ahead.batches(k, t, 0).images[0], plain.images[0])
    drawn.clear()
    ahead = Counted(data, recipe)
    for k in range(3):
        theta = ahead.network(k)
        expected = lines.fresh_network(data, recipe, k)
        assert all(map(torch.equal, theta.parameters(), expected.parameters()))
        for t in range(3):
            ahead.batches(k, t, 0)
    assert drawn == [(k, t) for k in range(3) for t in range(3)]


# ---- one checkpoint


MIXED = [
    ("DC", {}), ("MDA", {}), ("Interleaved", {}), ("MDO", {"lr_network": 0.3}), ("M", {"seed": 1}),
    ("MD", {"seed": 1, "outer_loops": 3}),
]  # fmt: skip
MANY = {"ipc": 2, "inner_loops": 3, "zeta_theta": 2, "outer_loops": 2}


def mixed_recipes(**more):
    return [of_method(m, **{**MANY, **more, **changes}) for m, changes in MIXED]


@pytest.mark.parametrize("steps", ["called", "recorded"])
def test_stopping_after_every_inner_iteration_changes_nothing(steps, tmp_path, request):
    if steps == "recorded":
        request.getfixturevalue("recorded")
    data, recipes, path = make_data(dtype=torch.float32), mixed_recipes(), tmp_path / "together.safetensors"
    expected = [alone(data, recipe, snapshots=(1,)) for recipe in recipes]
    n = sum(recipe.outer_loops * 3 for recipe in recipes)
    for _ in range(n - 1):
        with pytest.raises(OutOfTime, match=r"of 13 outer iterations: run again"):
            together(data, recipes, snapshots=(1,), checkpoint=path, deadline=time.monotonic())
    sets = together(data, recipes, snapshots=(1,), checkpoint=path, deadline=time.monotonic())
    for S, own in zip(sets, expected, strict=True):
        assert_equal(S, own)
    again = together(data, recipes, checkpoint=path)
    assert all(torch.equal(a.images, b.images) for a, b in zip(again, sets, strict=True)), "a complete run"


TOGETHER = """
from test_together import mixed_recipes

def work(checkpoint, out):
    recipes = mixed_recipes(outer_loops=3, inner_loops=6)
    save = lambda i, S: S.save(out + str(i))
    gm.condense_together(
        make_data(dtype=torch.float32), recipes, "cpu", checkpoint, False, checkpoint_seconds=0.0, finished=save
    )
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork and SIGKILL")
def test_killed_runs_continue_to_the_same_sets(tmp_path):
    checkpoint, out = tmp_path / "together.safetensors", tmp_path / "set"
    ended = kill_and_continue(TOGETHER, 5, (0.1, 0.7), checkpoint, out)
    assert "killed" in ended, "at least one kill must hit a running process"
    data = make_data(dtype=torch.float32)
    for i, recipe in enumerate(mixed_recipes(outer_loops=3, inner_loops=6)):
        assert torch.equal(gm.SyntheticSet.load(f"{out}{i}").images, alone(data, recipe).images)


@pytest.mark.parametrize("steps", ["called", "recorded"])
def test_a_file_for_each_run_can_be_continued_alone_or_with_others(steps, tmp_path, request):
    if steps == "recorded":
        request.getfixturevalue("recorded")
    data, recipes = make_data(dtype=torch.float32), mixed_recipes()[:4]
    paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for _ in range(9):  # of 24 inner iterations
        with pytest.raises(OutOfTime):
            together(data, recipes, checkpoint=paths, deadline=time.monotonic())
    with pytest.raises(OutOfTime):
        alone(data, recipes[2], checkpoint=paths[2], deadline=time.monotonic())
    for _ in range(4):
        with pytest.raises(OutOfTime):
            together(data, recipes[1:3], checkpoint=paths[1:3], deadline=time.monotonic())
    for S, recipe in zip(together(data, recipes, checkpoint=paths), recipes, strict=True):
        assert_equal(S, alone(data, recipe))
    with pytest.raises(ValueError, match="2 files for 4 recipes"):
        together(data, recipes, checkpoint=paths[:2])


def test_runs_that_stopped_inside_their_last_outer_iteration_are_finished(tmp_path):
    data, recipes = make_data(dtype=torch.float32), [of_method(m, **MANY) for m in ("DC", "MD")]
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for recipe, path in zip(recipes, paths, strict=True):
        for _ in range(4):  # of 2 x 3 inner iterations
            with pytest.raises(OutOfTime):
                alone(data, recipe, checkpoint=path, deadline=time.monotonic())
    for S, recipe in zip(together(data, recipes, checkpoint=paths), recipes, strict=True):
        assert_equal(S, alone(data, recipe))


@pytest.mark.parametrize("steps", ["called", "recorded"])
def test_runs_that_stopped_inside_different_outer_iterations_continue_together(steps, tmp_path, request):
    """Each has a theta of its own that was trained. On CUDA they share one again, once they have caught up."""
    if steps == "recorded":
        request.getfixturevalue("recorded")
    data, recipes = make_data(dtype=torch.float32), [of_method(m, **MANY) for m in ("DC", "MD", "MDA")]
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, inner_iterations in enumerate((2, 5, 4)):  # of T = 3
        for _ in range(inner_iterations):
            with pytest.raises(OutOfTime):
                alone(data, recipes[i], checkpoint=paths[i], deadline=time.monotonic())
    for S, recipe in zip(together(data, recipes, checkpoint=paths), recipes, strict=True):
        assert_equal(S, alone(data, recipe))


def test_a_checkpoint_of_other_runs_is_refused(tmp_path):
    data, path = make_data(dtype=torch.float32), tmp_path / "together.safetensors"
    recipes = [of_method("DC"), of_method("M")]
    together(data, recipes, checkpoint=path)
    before = path.read_bytes()
    for others, message in (
        (recipes[:1], "2 runs, not 1"),
        ([recipes[0], of_method("MD")], "how='d1' instead of 'd1 [+] d2'"),
        (recipes[::-1], "what="),
    ):
        with pytest.raises(ValueError, match=message):
            together(data, others, checkpoint=path)
        assert path.read_bytes() == before


def test_files_of_a_few_runs_are_written_at_their_time(tmp_path, monkeypatch):
    """Without a file nothing is read or written on the way. With one, its age decides, whoever comes first."""
    data, written = make_data(dtype=torch.float32), []
    recipes = [of_method("DC", outer_loops=5), of_method("M", outer_loops=5)]
    write = Checkpoint.write
    monkeypatch.setattr(Checkpoint, "write", lambda file, runs: (written.append(file.path), write(file, runs)))
    path = tmp_path / "b.safetensors"
    together(data, recipes, checkpoint_seconds=0)
    assert len(written) == 2, "as each run ends"
    written.clear()
    together(data, recipes, checkpoint=[None, path])
    assert written == [None, path] * 2
    path.unlink()
    written.clear()
    together(data, recipes, checkpoint=[None, path], checkpoint_seconds=0)
    assert written == [None, path] * 10
    with pytest.raises(ValueError, match="the same checkpoint"):
        together(data, recipes, checkpoint=[path, tmp_path / "." / "folder" / ".." / "b.safetensors"])


def test_data_are_not_read_through_without_a_checkpoint(monkeypatch):
    monkeypatch.setattr(gm.Data, "fingerprint", property(lambda data: 1 / 0))
    alone(make_data(dtype=torch.float32), of_method("DC"))


def test_what_each_gets_is_its_own(tmp_path):
    data, recipe = make_data(dtype=torch.float32), of_method("DC")
    S = alone(data, recipe, each=lambda k, S: S.history[0].update(loss=99))
    assert all(entry["loss"] != 99 for entry in S.history)
    assert len(alone(data, recipe, snapshots=[torch.tensor(0), torch.tensor(2)]).snapshots) == 2


def test_finished_is_called_as_each_set_is_done_and_again_after_a_restart(tmp_path):
    data, path = make_data(dtype=torch.float32), tmp_path / "together.safetensors"
    recipes = [of_method("DC", outer_loops=4), of_method("M", outer_loops=2), of_method("MD", seed=1)]
    found = []
    sets = together(data, recipes, checkpoint=path, finished=lambda i, S: found.append((i, S)))
    assert [i for i, _ in found] == [1, 0, 2]
    assert all(torch.equal(S.images, sets[i].images) for i, S in found)
    found.clear()
    together(data, recipes, checkpoint=path, finished=lambda i, S: found.append((i, S)))
    assert sorted(i for i, _ in found) == [0, 1, 2]


# ---- errors


def test_one_diverged_run_does_not_stop_the_others(tmp_path):
    data, path = make_data(dtype=torch.float32), tmp_path / "together.safetensors"
    recipes = [of_method("DC"), of_method("multi,d2,fixed", lr_images=1e38, outer_loops=50), of_method("MD")]
    found = {}
    with pytest.raises(gm.Diverged, match="together-1-last-good") as error:
        together(data, recipes, checkpoint=path, finished=found.__setitem__)
    assert sorted(found) == [0, 2]
    for i in found:
        assert_equal(found[i], alone(data, recipes[i]))
    assert error.value.S.images.isfinite().all()
    assert error.value.S.recipe == recipes[1].as_dict()
    with pytest.raises(gm.Diverged, match=r"delete .*together\.safetensors to try again"):  # the others are kept
        together(data, recipes, checkpoint=path)


def test_a_loss_that_is_read_late_names_its_own_run_and_iteration(recorded, monkeypatch, tmp_path):
    """With recorded steps a loss is read while another run is at work."""
    data = make_data(dtype=torch.float32)
    recipes = [of_method("DC", outer_loops=4), of_method("multi,d2,fixed", outer_loops=4)]
    calls = []

    def poisoned(A, B, d2=how.d2):
        calls.append(A.shape)
        return d2(A, B) * (math.nan if len(calls) > 6 else 1.0)  # an update calls d2 six times

    monkeypatch.setitem(how.DISTANCES, "d2", poisoned)
    found = {}
    with pytest.raises(gm.Diverged, match="k=1, t=0") as error:
        together(data, recipes, finished=found.__setitem__)
    assert error.value.S.recipe["how"] == "d2" and list(found) == [0]
    assert torch.equal(found[0].images, alone(data, recipes[0]).images)


def test_bad_input_is_refused_before_any_work(tmp_path):
    data = make_data(dtype=torch.float32)
    for recipes, options, message in (
        ([of_method("DC"), of_method("M"), of_method("DC")], {}, "two recipes are equal"),
        ([], {}, "there is no recipe"),
        ([of_method("DC"), of_method("M", depth=4)], {}, "too small.*depth 4"),
        ([of_method("DC"), "M"], {}, "str"),
        ([of_method("DC"), of_method("M")], {"snapshots": [(1,)]}, "1 entries for 2 recipes"),
        ([of_method("DC"), of_method("M")], {"checkpoint": [tmp_path / "a"] * 2}, "the same checkpoint"),
        ([of_method("DC"), of_method("M")], {"snapshots": [(1,), (9,)]}, "snapshot=9"),
    ):
        with pytest.raises(ValueError, match=message):
            together(data, recipes, **{"checkpoint": tmp_path / "file", **options})
    assert list(tmp_path.iterdir()) == []


def test_snapshots_of_each_recipe():
    data = make_data(dtype=torch.float32)
    one, other = together(data, [of_method("DC"), of_method("M")], snapshots=[(1,), (0, 3)])
    assert list(one.snapshots) == [1] and list(other.snapshots) == [0, 3]


# ---- precision="auto"


@pytest.mark.parametrize("fastest", ["bf16", "float32"])
def test_auto_takes_the_measured_precision_and_keeps_it(fastest, tmp_path, monkeypatch):
    from gmlib import condensation

    data, path = make_data(dtype=torch.float32), tmp_path / "together.safetensors"
    measured = []
    monkeypatch.setattr(condensation, "_MEASURED", {})

    def fastest_precision(network, batches):
        measured.append(len(batches))
        return fastest

    monkeypatch.setattr(condensation, "fastest_precision", fastest_precision)
    recipes = [of_method(m, precision="auto") for m in ("DC", "M")] + [of_method("MD")]
    with pytest.raises(OutOfTime):
        together(data, recipes, checkpoint=path, deadline=time.monotonic())
    assert measured == [3], "once for both"
    other = "float32" if fastest == "bf16" else "bf16"
    monkeypatch.setattr(condensation, "fastest_precision", lambda *_: other)
    sets = together(data, recipes, checkpoint=path)
    assert [S.recipe["precision"] for S in sets] == [fastest, fastest, "float32"]
    for S, recipe in zip(sets, recipes, strict=True):
        settled = gm.Recipe(**{**recipe.as_dict(), "precision": S.recipe["precision"]})
        assert_equal(S, alone(data, settled))
    assert Checkpoint(path, data, recipes).recipes[0].precision == fastest
