"""The playground: its panel without a browser, its runs against `condense`, and angles against a hand computation."""

import html
import io
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import make_data, tiny_recipe
from PIL import Image

import gmlib as gm
import gmreport as report
from gmlib import where
from gmlib.analysis.matching import angles, angles_along
from gmlib.condensation import follow
from gmlib.lines import fresh_network
from gmlib.maxmin import noise_set
from gmlib.recipe import BUDGETS
from gmreport import playground, replays, sessions


@pytest.fixture
def panel(monkeypatch):
    """A panel on digits with short runs that draw nothing."""
    tiny = replace(
        BUDGETS["smoke"], networks=2, epochs=2, recipe={**BUDGETS["smoke"].recipe, "width": 4, "batch_real": 5}
    )
    monkeypatch.setitem(BUDGETS, "smoke", tiny)
    made = report.Playground(["digits", "MNIST"])
    made.controls["K"].value = 2
    monkeypatch.setattr(made, "_draw", lambda: None)
    yield made
    made.stop()
    made.join()


def message(panel):
    """The sentence in the panel. It is one line without a traceback."""
    text = re.fullmatch(r'<p role="status">(.*)</p>', panel._status.value)[1]
    assert "Traceback" not in text
    return html.unescape(text)


def finish(act, panel):
    act()
    panel.join(60)
    assert not panel.running
    return message(panel)


# ---------------------------------------------------------------------------------------------- angles


def by_hand(S, data, recipe, k, steps):
    """Cosine and ratio of each layer after `steps` plain steps of theta on S: {level: [(cosine, ratio), ...]}."""
    network = fresh_network(data, recipe, k)
    momentum = [torch.zeros_like(p) for p in network.parameters()]
    for _ in range(steps):
        loss = F.cross_entropy(network(S.images), S.labels)
        for p, v, g in zip(
            network.parameters(), momentum, torch.autograd.grad(loss, list(network.parameters())), strict=True
        ):
            v.mul_(recipe.momentum_network).add_(g)
            p.data -= recipe.lr_network * v
    sides = {"S": [], "T": []}
    for c in range(data.n_classes):
        for side, x in (("S", S.images[S.labels == c]), ("T", data.of_class(c))):
            g = torch.autograd.grad(F.cross_entropy(network(x), torch.full((len(x),), c)), list(network.parameters()))
            sides[side].append([layer.numpy().ravel() for layer in g if layer.ndim > 1])
    found = {"class": [], "union": []}
    for l in range(len(sides["S"][0])):  # noqa: E741
        s, t = (np.stack([g[l] for g in sides[side]]) for side in "ST")
        norms = np.sqrt((s**2).sum(1)), np.sqrt((t**2).sum(1))
        found["class"].append((np.mean((s * t).sum(1) / norms[0] / norms[1]), norms[0].mean() / norms[1].mean()))
        s, t = s.mean(0), t.mean(0)
        found["union"].append((s @ t / np.sqrt((s @ s) * (t @ t)), np.sqrt((s @ s) / (t @ t))))
    return found


def test_angles_equal_a_hand_computation():
    data = make_data()
    # A batch holds all images of a class, so the real gradient does not depend on which ones are drawn.
    recipe = tiny_recipe(ipc=2, inner_loops=3, where="steps:2,1", batch_real=100, outer_loops=1)
    S = noise_set(data, 2, seed=3)
    table = angles(S, data, recipe, k=5, device="cpu")
    assert list(table) == ["t", "level", "layer", "cosine", "ratio"]
    for t, steps in ((0, 0), (2, 3)):
        expected = by_hand(S, data, recipe, 5, steps)
        for level in ("class", "union"):
            rows = table[(table["t"] == t) & (table["level"] == level)]
            np.testing.assert_allclose(rows[["cosine", "ratio"]], expected[level], rtol=1e-9)
    assert len(table) == 2 * 2 * 3 and table["layer"].iloc[0] == "0.weight"


def test_a_set_has_no_angle_with_itself():
    data = make_data(counts=(2, 2, 2))
    S = replace(noise_set(data, 2), images=data.train_images)
    recipe = tiny_recipe(ipc=2, inner_loops=1, zeta_theta=1, batch_real=2)
    np.testing.assert_allclose(angles(S, data, recipe, 0)[["cosine", "ratio"]], 1, rtol=1e-9)


def test_angles_along_a_run_are_those_of_each_set():
    data, recipe = make_data(dtype=torch.float32), tiny_recipe(ipc=2, inner_loops=2, zeta_theta=1)
    sets = {0: noise_set(data, 2), 2: gm.condense(data, recipe, device="cpu", progress=False)}
    table = angles_along(sets, data, recipe, device="cpu")
    assert sorted(table["k"].unique()) == [0, 2]
    for k, S in sets.items():
        expected = angles(S, data, recipe, recipe.outer_loops, device="cpu")
        pd.testing.assert_frame_equal(table[table["k"] == k].drop(columns="k"), expected)


def test_angles_check_their_input():
    data, recipe = make_data(), tiny_recipe(ipc=1)
    with pytest.raises(ValueError, match="2 images"):
        angles(noise_set(data, 2), data, recipe, 0)
    with pytest.raises(ValueError, match="k=-1"):
        angles(noise_set(data, 1), data, recipe, -1)
    with pytest.raises(ValueError, match="digits"):
        angles(noise_set(data, 1), data, gm.Recipe(), 0)


# ---------------------------------------------------------------------------------------------- controls


def test_controls_describe_a_recipe(panel):
    wanted = {
        "ipc": 10, "what": "inter", "lam_is_C": False, "lam": 2.0, "d1": 0, "d2": 0.3, "d3": 1, "d4": 100, "T": 7,
        "K": 12, "t0": 50, "t1": 40, "t2": 30, "t3": 0, "t4": 5, "lr_images": 0.5, "init": "real", "seed": 4,
    }  # fmt: skip
    for name, value in wanted.items():
        panel.controls[name].value = value
    recipe = panel.recipe()
    assert (recipe.dataset, recipe.ipc, recipe.what, recipe.how) == ("digits", 10, "inter", "0.3*d2 + d3 + 100*d4")
    assert recipe.where == "steps:50,40,30,0,5" and [where.steps(recipe.where, t, 1) for t in (0, 3, 4, 9)] == [
        50,
        0,
        5,
        5,
    ]
    assert (recipe.lam, recipe.outer_loops, recipe.inner_loops) == (2.0, 12, 7)
    assert (recipe.lr_images, recipe.init, recipe.seed, recipe.width) == (0.5, "real", 4, 4)
    panel.controls["lam_is_C"].value = True
    assert panel.recipe().lam is None and panel.controls["lam"].disabled


def test_controls_start_with_the_values_of_a_method():
    controls = report.Playground(["digits"], method="multi,d1+0.25*d4,adaptive", ipc=10).controls
    assert [controls[f"t{t}"].value for t in range(5)] == [50, 40, 30, 20, 10]  # Eq. 12
    assert [controls[d].value for d in ("d1", "d2", "d3", "d4")] == [1, 0, 0, 0.25]
    with pytest.raises(ValueError, match="MDO"):
        report.Playground(["digits"], method="MDO", ipc=10)
    with pytest.raises(ValueError, match="unknown"):
        report.Playground(["digits"], method="X")
    with pytest.raises(ValueError, match="list"):
        report.Playground("digits")


def test_images_per_class_set_the_values_of_the_budget(panel):
    c, wanted = panel.controls, gm.Recipe.for_method("MD", "digits", 10, "smoke")
    assert all(c[f"t{t}"].disabled for t in range(5))  # T = 1: theta does not move
    c["ipc"].value = 10
    assert (c["K"].value, c["T"].value, c["lr_images"].value) == (
        wanted.outer_loops,
        wanted.inner_loops,
        wanted.lr_images,
    )
    assert {c[f"t{t}"].value for t in range(5)} == {wanted.zeta_theta}
    assert [c[f"t{t}"].disabled for t in range(5)] == [False, False, False, True, True]  # T = 4


def test_the_shown_code_makes_the_same_set(panel):
    panel.controls["d3"].value = 0.1
    assert "0.1*d3" in panel._code.value
    finish(panel.run, panel)
    names = {}
    exec(panel.code, names)
    assert names["recipe"] == panel.recipe() and torch.equal(names["S"].images, panel.S.images)


# ---------------------------------------------------------------------------------------------- runs


def test_a_run_ends_like_condense(panel, digits, monkeypatch):
    monkeypatch.setattr(panel, "_draw", type(panel)._draw.__get__(panel))
    panel.controls["ipc"].value = 2  # T = 4
    panel.controls["K"].value = 2
    assert finish(panel.run, panel).startswith("Done: 2 outer iterations of multi,d1+d2,steps:5,5,5,5,5")
    expected = gm.condense(digits, panel.recipe(), progress=False)
    assert torch.equal(panel.S.images, expected.images)
    assert [e["loss"] for e in panel.S.history] == [e["loss"] for e in expected.history]
    assert (
        "data:image/png;base64,iVBOR" in panel._picture.value
        and 'alt="The images at k = 2 of 2' in panel._picture.value
    )
    assert panel.buttons["go on"].disabled and panel.buttons["stop"].disabled and not panel.buttons["run"].disabled
    assert "press Run" in finish(panel.go_on, panel)


def test_a_run_stops_within_one_update_and_continues_to_the_same_bits(panel, digits, monkeypatch):
    panel.controls["ipc"].value = 2
    panel.controls["K"].value = 2
    recipe, parts = panel.recipe(), 1
    monkeypatch.setattr(playground, "REFRESH", 0)
    monkeypatch.setattr(panel, "_draw", panel.stop)  # as if Stop is pressed while each picture is drawn
    panel.run()
    panel.controls["seed"].value = 9  # for the next run
    panel.join()
    while "Stopped" in message(panel):
        assert not panel.buttons["go on"].disabled
        finish(panel.go_on, panel)
        parts += 1
        if parts == 4:
            halfway = panel.S
    assert parts == 8  # two outer iterations of four updates, one in each part
    expected = gm.condense(digits, recipe, progress=False, snapshots=[1])
    assert len(halfway.history) == 1 and torch.equal(halfway.images, expected.snapshots[1])
    assert torch.equal(panel.S.images, expected.images)
    assert finish(panel.run, panel).startswith("Stopped after 0 of 2")
    assert panel.S.recipe["seed"] == 9  # Run starts again, with the present controls


def test_a_long_run_ends_on_stop_and_on_leaving_python(panel):
    panel.controls["K"].value = 10**6
    for end in (panel.stop, playground._leave):
        panel.run()
        limit = time.monotonic() + 60
        while panel.S is None or not panel.S.history:
            assert time.monotonic() < limit and panel._thread.daemon
            time.sleep(0.01)
        thread = panel._thread
        panel.run()
        assert panel._thread is thread and "press Stop" in message(panel)
        end()
        panel.join(60)
        assert not panel.running and message(panel).startswith("Stopped after")


def test_a_second_panel_stops_the_first(panel):
    panel.controls["K"].value = 10**6
    panel.run()
    second = report.Playground(["digits"])
    second.controls["K"].value = 1
    assert finish(second.run, second).startswith("Done: 1 outer iteration")
    assert not panel.running and "Stopped" in message(panel)


def test_evaluate_compares_with_random_images(panel, digits):
    assert "press Run" in finish(panel.evaluate, panel)
    finish(panel.run, panel)
    finish(panel.evaluate, panel)
    size = {"width": 4, "depth": 2, "epochs": 2, "progress": False}
    ours = gm.evaluate(panel.S, digits, n_networks=2, **size)
    random = gm.evaluate(gm.coreset("random", digits, 1), digits, n_networks=2, **size)
    assert f"S after 2 outer iterations: {ours}; random real images: {random}" in panel._scores.value


def test_stop_ends_an_evaluation(panel, monkeypatch):
    finish(panel.run, panel)
    monkeypatch.setattr(panel._stop, "clear", panel._stop.set)
    assert finish(panel.evaluate, panel) == "Stopped."
    assert panel._scores.value == ""


# ---------------------------------------------------------------------------------------------- errors


def test_bad_choices_are_answered_in_one_sentence(panel, tmp_path):
    c = panel.controls
    c["d1"].value = c["d2"].value = 0
    panel.run()
    assert panel._thread is None and "every distance" in message(panel)
    assert "# every distance" in panel._code.value
    c["d1"].value = 1
    c["ipc"].value, c["init"].value = 500, "real"
    assert "500" in finish(panel.run, panel) and panel.S is None  # a class of digits has fewer images
    c["ipc"].value, c["init"].value = 1, "noise"
    panel.data_dir = tmp_path
    c["dataset"].value = "MNIST"
    assert "MNIST" in finish(panel.run, panel) and list(tmp_path.iterdir()) == []


def test_a_size_is_for_image_files():
    panel = report.Playground(["imagefolder:mine", "digits"], size=16)
    assert 'load_data("imagefolder:mine", size=16)' in panel.code.replace("'", '"')
    panel.controls["dataset"].value = "digits"
    assert "size" not in panel.code and "digits" in panel.code


def test_a_choice_that_fails_leaves_the_last_run_as_it_is(panel):
    panel._draw = panel.stop
    finish(panel.run, panel)
    S = panel.S
    panel.controls["ipc"].value, panel.controls["init"].value = 500, "real"
    finish(panel.run, panel)
    assert panel.S is S and not panel.buttons["go on"].disabled
    assert finish(panel.go_on, panel).startswith(("Done", "Stopped"))
    assert panel.S.ipc == 1


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("an error of torch\nwith many lines"), "RuntimeError: an error of torch"),
        (OSError("no space left"), "no space left"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_an_error_ends_the_run_with_one_sentence(panel, monkeypatch, error, sentence):
    def fail(*_):
        raise error
        yield

    monkeypatch.setattr(playground, "follow", fail)
    assert finish(panel.run, panel) == sentence
    assert not panel.buttons["run"].disabled and panel.buttons["go on"].disabled
    assert playground.Playground._active is None


@pytest.mark.parametrize("deferred", [False, True])
def test_a_run_that_diverges_leaves_its_last_good_set(panel, monkeypatch, request, deferred):
    """On CUDA losses are read at the end of an outer iteration, and before each picture."""
    if deferred:
        request.getfixturevalue("recorded")  # as on CUDA
    good = []

    def spoil(data, recipe, run):
        for update in follow(data, recipe, run):
            yield update
            good.append(run.state.S.detach().clone())
            if len(good) == 3:
                run.state.S.data.fill_(torch.nan)

    monkeypatch.setattr(playground, "follow", spoil)
    monkeypatch.setattr(playground, "REFRESH", 0 if deferred else math.inf)
    panel.controls["ipc"].value = 2  # T = 4
    assert "not finite" in finish(panel.run, panel)
    assert len(good) == 3 and torch.equal(panel.S.images, good[-1])
    assert panel.buttons["go on"].disabled and not panel.buttons["evaluate"].disabled


# ---------------------------------------------------------------------------------------------- what the panel shows


def test_without_a_kernel_the_panel_is_a_note(panel):
    bundle = panel._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    page = bundle["text/html"]
    assert "needs a running kernel" in page and "notebooks/playground.md" in page and "jupyter lab" in page
    assert not re.search(r"https?:|//|<script|\bsrc=", page)
    root = Path(__file__).parent.parent
    assert "setup:" in (root / "Makefile").read_text() and (root / "notebooks" / "playground.md").is_file()


def test_with_a_kernel_the_panel_is_a_widget(panel, monkeypatch):
    import IPython

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and "needs a running kernel" in bundle["text/html"]
    shown = [w.description for w in panel.controls.values()]
    assert {"data set", "images per class", "lam", "d1, angle", "t = 4 and later"} <= set(shown)


def table_of_angles(cosine=0.5, ratio=2.0, ts=(0,)):
    rows = [
        {"t": t, "level": level, "layer": f"{i}.weight", "cosine": cosine - 0.1 * i, "ratio": ratio / (1 + i + t)}
        for t in ts for level in ("class", "union") for i in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_session_figure_draws_what_it_is_given():
    S, table = noise_set(make_data(), 2), table_of_angles(ts=(0, 3))
    fig = report.session_figure(S, [9.0, 6.0, 5.0], table, k=2, K=3)
    images, loss, cosine, ratio = fig.axes
    assert len(images.images) == 1 and [t.get_text() for t in images.get_xticklabels()] == list(S.classes)
    assert list(loss.lines[0].get_ydata()) == [9.0, 6.0] and loss.get_xlim() == (0, 3) and loss.get_ylim()[1] > 9
    for ax, column in ((cosine, "cosine"), (ratio, "ratio")):
        drawn = {
            line.get_label(): list(line.get_ydata()) for line in ax.lines if not line.get_label().startswith("_")
        }
        assert len(drawn) == 4
        for (t, level), rows in table.groupby(["t", "level"]):
            words = {"class": "inside classes", "union": "across classes"}[level]
            assert drawn[f"{words}, t = {t}"] == list(rows[column])
    assert ratio.get_yscale() == "log" and ratio.get_ylim()[0] < table["ratio"].min()


def test_ratio_limits_contain_every_ratio():
    table = pd.concat([table_of_angles(0.3, 100.0), table_of_angles(0.9, 1.0)])
    assert replays.ratio_limits(table) == (pytest.approx(0.8 / 3), pytest.approx(125))
    assert replays.ratio_limits(table.assign(ratio=np.nan)) == (1 / 3, 3.0)


# ---------------------------------------------------------------------------------------------- recordings


def session(ks=(0, 1, 4), ipc=1, shade=0.0, ts=(0,), random=50.0):
    """A session of noise, whose cosine grows with k."""
    data = make_data(dtype=torch.float32)
    sets = [noise_set(data, ipc, seed=k) for k in ks]
    table = pd.concat([table_of_angles(0.3 + 0.1 * k, 1 + k, ts).assign(k=k) for k in ks])
    scores = [[40.0 + 10 * k + shade, 42.0 + 10 * k + shade] for k in ks]
    recipe = tiny_recipe(ipc=ipc, outer_loops=ks[-1])
    trace = dict(zip(ks, zip(sets, scores, strict=True), strict=True))
    return report.Session.of(recipe, trace, [9.0, 7.0, 5.0, 4.0][: ks[-1]], table, random)


def test_a_sprite_has_the_frames_below_each_other():
    data = make_data(shape=(1, 4, 6))
    sets = [noise_set(data, 3, seed=seed) for seed in (0, 1)]
    pixels = np.asarray(Image.open(io.BytesIO(sessions.sprite(sets))))
    rows, height, width = sessions.ROWS, 4 + 1, 6 + 1  # with a gap of one pixel
    assert pixels.shape == (2 * rows * height, 3 * width, 2)
    for n, S in enumerate(sets):
        images = np.rint(255 * S.pixels().numpy()).reshape(3, 3, 4, 6)
        for c in range(3):
            for r in range(rows):
                y, x = (n * rows + r) * height, c * width
                tile = pixels[y : y + height, x : x + width]
                np.testing.assert_array_equal(tile[:4, :6, 0], images[c, r])
                assert (tile[:4, :6, 1] == 255).all() and not tile[4:, :, 1].any() and not tile[:, 6:, 1].any()


def test_a_session_survives_json_and_knows_its_means():
    made = session(ts=(0, 3))
    read = report.Session.from_json(json.loads(json.dumps(made.to_json())), made.random)
    pd.testing.assert_frame_equal(read.angles[made.angles.columns], made.angles.reset_index(drop=True), rtol=1e-3)
    for one in (made, read):
        assert (one.ks, one.recipe, one.losses, one.sprite) == (made.ks, made.recipe, made.losses, made.sprite)
        assert one.accuracy == [41.0, 51.0, 81.0]
        assert one.along("cosine") == pytest.approx([0.2, 0.3, 0.6])  # of .3 .2 .1 and so on
        ratios = [r * (1 / 4 + 1 / 5 + 1 / 6) / 3 for r in (1, 2, 5)]
        assert one.along("ratio", "union", -1) == pytest.approx(ratios, rel=1e-3)  # JSON has four digits
        assert one.lowest_layer == (3, 3, pytest.approx(0.5))


def test_a_recording_has_every_frame_and_three_stills():
    page = report.Recording({"a": session(), "b <": session(shade=1.0)}, answer="It <did>.")._repr_html_()
    data = json.loads(re.search(r'<script type="application/json">(.*)</script>', page)[1])
    assert data["ks"] == [0, 1, 4] and [run["at"] for run in data["runs"]] == [[0, 0.25, 1]] * 2
    assert [run["text"][0] for run in data["runs"]] == [["41 %", "51 %", "81 %"], ["42 %", "52 %", "82 %"]]
    assert data["runs"][0]["text"][3] == ["–", "9", "4"]
    assert page.count("<img") == 6 and page.count("<svg") == 8 and "b &lt;" in page and "It &lt;did&gt;." in page
    with pytest.raises(ValueError, match="different frames"):
        report.Recording({"a": session(), "b": session(ks=(0, 4))})


def test_a_run_is_recorded_at_each_frame():
    data = make_data(dtype=torch.float32)
    recipe = tiny_recipe(ipc=2, inner_loops=2, zeta_theta=1, outer_loops=3)
    made = sessions.record(data, recipe, device="cpu")
    S = gm.condense(data, recipe, device="cpu", progress=False)
    assert made.ks == (0, 1, 2, 3) and made.losses == [entry["loss"] for entry in S.history]
    assert [len(each) for each in made.accuracies] == [sessions.NETWORKS] * 3 + [sessions.NETWORKS_AT_END]
    expected = angles(S, data, recipe, 3, device="cpu")
    last = made.angles[made.angles["k"] == 3].drop(columns="k")
    pd.testing.assert_frame_equal(last, expected)


def test_only_what_is_missing_is_recorded(monkeypatch, tmp_path, capsys):
    asked = []

    def record(data, recipe, *, device):
        asked.append(recipe.method)
        return session(ks=(0, 1))

    monkeypatch.setattr(sessions, "record", record)
    monkeypatch.setattr(sessions, "_accuracies", lambda *_: [60.0, 70.0])
    # The file has the recipe of the session, so it must be that of the definition.
    monkeypatch.setattr(sessions, "recorded_recipe", lambda name: session(ks=(0, 1)).recipe)
    monkeypatch.setattr(sessions, "SESSIONS", {"one": ("M", 1, {})})
    path = tmp_path / "new" / "sessions.json"
    for _ in range(2):
        sessions.record_all(path)
    assert asked == ["M"] and capsys.readouterr().out.count("one: ") == 1
    found, about = sessions.stored_sessions(path)
    assert found["one"].random == 65.0 and about["made_with"]["threads"] == 1
    path.write_text(path.read_text().replace("40.0", "99.0"))
    with pytest.raises(ValueError, match="damaged"):
        sessions.stored_sessions(path)


def test_the_committed_recordings_are_those_of_the_definitions(digits):
    found, about = sessions.stored_sessions()
    assert set(found) == set(sessions.SESSIONS) and about["protocol"]["data"] == digits.fingerprint
    for name, each in found.items():
        assert each.recipe == sessions.recorded_recipe(name)
        assert each.ks == tuple(sessions.frames(each.recipe.outer_loops)) and len(each.losses) == each.ks[-1]
    shown = report.recordings()
    assert [r.id for r in shown] == [f"try-{thing.id}" for thing in replays.THINGS]


@pytest.mark.parametrize("thing", replays.THINGS, ids=lambda thing: thing.id)
def test_the_code_of_a_recording_makes_its_recipes(thing, monkeypatch, digits):
    made = []
    monkeypatch.setattr(gm, "load_data", lambda name: digits)
    monkeypatch.setattr(gm, "condense", lambda data, recipe: made.append(recipe))
    exec(replays._code(thing), {})
    assert made == [sessions.recorded_recipe(name) for name in thing.sessions.values()]


def test_without_recordings_the_page_says_how_to_make_them(tmp_path):
    nothing = tmp_path / "none.json"
    assert "gmreport.sessions" in report.recordings(nothing)._repr_html_()
    assert not report.recordings_answer(nothing).data and not report.recordings_sentence(nothing).data
