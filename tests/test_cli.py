"""The command `gmlib`."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from conftest import contents, make_data, photos

import gmlib as gm
from gmlib import cli, condensation, evaluation
from gmlib import recipe as recipes
from gmlib.runs import cells, store
from gmlib.sets import SyntheticSet

SMALL = ["--budget", "smoke", "--outer-loops", "2", "--quiet"]


def run(*words):
    return cli.main([str(word) for word in words])


def test_a_set_is_condensed_as_by_the_library(tmp_path, digits, capsys):
    out = tmp_path / "set.safetensors"
    assert run("condense", "digits", "--ipc", 1, "--method", "MD", "--seed", 3, "--out", out, *SMALL) == 0
    recipe = gm.Recipe.for_method("MD", "digits", 1, "smoke", 3, outer_loops=2)
    S = gm.SyntheticSet.load(out)
    assert torch.equal(S.images, gm.condense(digits, recipe, progress=False).images)
    assert S.recipe == recipe.as_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["set.safetensors"]
    assert "10 images" in capsys.readouterr().out

    words = ("--data", "digits", "--networks", 2, "--epochs", 3, "--quiet")
    assert run("evaluate", out, *words) == 0
    expected = gm.evaluate(S, digits, n_networks=2, epochs=3, progress=False)
    assert str(expected) in capsys.readouterr().out


def test_every_field_of_a_recipe_is_an_option(tmp_path, capsys):
    out = tmp_path / "set.safetensors"
    assert (
        run("condense", "digits", "--out", out, "--lr-images", 0.05, "--init", "real", "--method", "M", *SMALL) == 0
    )
    made = gm.SyntheticSet.load(out).recipe
    assert (made["lr_images"], made["init"], made["outer_loops"], made["what"]) == (0.05, "real", 2, "multi")
    with pytest.raises(SystemExit) as stop:
        run("condense", "--help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stop.value.code == 0 and "K, the number of networks drawn" in said
    for field in fields(gm.Recipe):
        assert f"--{field.name.replace('_', '-')} " in said or field.name == "dataset"
    first_to_last = ("--ipc N", "--out FILE", "recipe options", "--what STR", "machine options")
    places = [said.index(word) for word in first_to_last]
    assert places == sorted(places) and "`" not in said, "what everybody needs comes first, without markup"


def test_results_can_be_read_by_scripts(tmp_path, digits, capsys):
    out = tmp_path / "set.safetensors"
    assert run("condense", "digits", "--out", out, "--json", "--method", "M", *SMALL) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["set"] == str(out) and made["recipe"] == gm.SyntheticSet.load(out).recipe and made["seconds"] > 0
    options = ("--data", "digits", "--networks", 2, "--epochs", 3, "--lr", 0.02, "--quiet", "--json")
    assert run("evaluate", out, *options) == 0
    found = json.loads(capsys.readouterr().out)
    S = gm.SyntheticSet.load(out)
    expected = gm.evaluate(S, digits, n_networks=2, epochs=3, lr=0.02, progress=False)
    assert found["accuracies"] == list(expected.accuracies) and found["mean"] == expected.mean
    assert found["protocol"]["lr"] == 0.02


def test_a_set_is_judged(tmp_path, capsys):
    out = tmp_path / "set.safetensors"
    run("condense", "digits", "--out", out, "--method", "M", *SMALL)
    words = ("evaluate", out, "--data", "digits", "--networks", 2, "--epochs", 2, "--quiet", "--judge")
    capsys.readouterr()
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "IOR" in said and "HLR" in said and "random images" in said
    assert run(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ior"] == pytest.approx(found["mean"] - sum(found["random"]) / len(found["random"]))
    assert found["hlr"] == pytest.approx(found["whole"] - found["mean"]) and 0 <= found["balanced"] <= 100


def test_a_set_is_judged_without_what_is_left_out(tmp_path, capsys):
    out = tmp_path / "set.safetensors"
    run("condense", "digits", "--out", out, "--method", "M", *SMALL)
    words = ("evaluate", out, "--data", "digits", "--networks", 2, "--epochs", 2, "--quiet", "--judge", "--json")
    capsys.readouterr()
    assert run(*words, "--random-sets", 1, "--no-whole") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["random"]) == 1 and found["whole"] is found["hlr"] is None


def test_the_version_is_said(capsys):
    assert run("--version") == 0 and capsys.readouterr().out == f"gmlib {gm.__version__}\n"


def test_a_folder_may_end_in_a_slash(tmp_path):
    folder, out = photos(tmp_path / "photos"), tmp_path / "set.safetensors"
    small = ("--width", 4, "--depth", 2, "--outer-loops", 1, "--size", 16, "--quiet")
    assert run("condense", f"imagefolder:{folder}/", "--out", out, "--method", "DC", *small) == 0
    assert SyntheticSet.load(out).recipe["dataset"] == f"imagefolder:{folder}"


def test_photos_get_the_size_and_scale_of_the_set(tmp_path, capsys):
    first, later = (
        f"imagefolder:{photos(tmp_path / name, seed=seed)}" for seed, name in enumerate(("first", "later"))
    )
    out = tmp_path / "set.safetensors"
    small = ("--width", 4, "--depth", 2)
    assert run("condense", first, "--out", out, "--method", "M", "--size", "8x12", *small, *SMALL) == 0
    S = gm.SyntheticSet.load(out)
    assert S.shape == (3, 8, 12)
    assert S.mean != gm.load_data(later, size=(8, 12), progress=False).mean
    for name in (first, later):
        data = gm.load_data(name, size=(8, 12), mean=S.mean, std=S.std, progress=False)
        accuracies = gm.evaluate(S, data, n_networks=1, epochs=2, progress=False).accuracies
        capsys.readouterr()
        assert run("evaluate", out, "--data", name, "--networks", 1, "--epochs", 2, "--quiet", "--json") == 0
        assert tuple(json.loads(capsys.readouterr().out)["accuracies"]) == accuracies
    for size, said in (("8x12x3", "(height, width)"), ("big", "big"), ("0", "--size 0")):
        assert run("condense", first, "--out", tmp_path / "no.safetensors", "--size", size, *SMALL) == 2
        assert said in capsys.readouterr().err


def test_a_set_is_shown_and_exported(tmp_path, capsys):
    out = tmp_path / "set.safetensors"
    run("condense", "digits", "--out", out, "--method", "M", *SMALL)
    capsys.readouterr()
    assert run("show", out, "--out", tmp_path / "set.png") == 0
    said = capsys.readouterr().out
    assert "10 images" in said and "method" not in said and "outer_loops=2" in said and "set.png" in said
    assert (tmp_path / "set.png").read_bytes().startswith(b"\x89PNG")
    assert run("show", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == {str(c): 1 for c in range(10)}
    assert run("export", out, "--png", tmp_path / "png", "--npz", tmp_path / "set.npz") == 0
    assert len(list((tmp_path / "png").glob("*/*.png"))) == 10
    assert torch.equal(gm.SyntheticSet.from_npz(tmp_path / "set.npz").images, gm.SyntheticSet.load(out).images)
    assert run("export", out) == 2 and "--png" in capsys.readouterr().err


def test_an_estimate_says_times_and_memory(capsys):
    words = ("estimate", "digits", "--method", "MD", "--budget", "smoke", "--networks", 3, "--device", "cpu")
    assert run(*words, "--outer-loops", 40) == 0
    said = capsys.readouterr().out
    assert "40 outer iterations" in said and "3 networks" in said and "memory" in said
    assert run(*words, "--json", "--outer-loops", 80) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds_condensing"] == pytest.approx(80 * found["outer_iteration"])
    assert found["recipe"]["outer_loops"] == 80 and found["device"] == "cpu"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "condense"),
        (["condens"], "condense"),
        (["condense", "digits"], "--out"),
        (["condense", "digits", "--out", "x", "--lr-image", "1"], "--lr-images"),
        (["condense", "digits", "--out", "x", "--ipc", "one"], "--ipc"),
    ],
)
def test_a_slip_in_the_words_names_what_fits(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2 and said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["condense", "digit", "--out", "x"], "digits"),
        (["condense", "digits", "--out", "x", "--method", "MDX"], "MDA"),
        (["condense", "digits", "--out", "x", "--lr-images", "-1"], "--lr-images -1"),
        (["condense", "digits", "--out", "x", "--init", "white"], "real"),
        (["show", "missing.safetensors"], "missing.safetensors"),
        (["estimate", "digits", "--networks", "0"], "--networks 0"),
        (["condense", "digits", "--out", "missing/x"], "folder"),
        (["evaluate", "missing.safetensors", "--data", "digits"], "missing.safetensors"),
        (["condense", "digits", "--out", "set.pt"], "set.pt would be a safetensors file"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("gmlib: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_continues_from_its_checkpoint(tmp_path, digits, monkeypatch, capsys):
    out = tmp_path / "set.safetensors"
    words = ("condense", "digits", "--method", "MD", "--out", out, *SMALL)
    real, seen = condensation.algorithm_1, []

    def interrupted(*arguments, **options):
        for update in real(*arguments, **options):
            if len(seen) == 1:
                raise KeyboardInterrupt
            seen.append(update)
            yield update

    monkeypatch.setattr(condensation, "algorithm_1", interrupted)
    monkeypatch.setattr(condensation.Checkpoint, "age", lambda self: 1e9)  # a checkpoint after every update
    assert run(*words) == 130
    assert "continue" in capsys.readouterr().err
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1

    monkeypatch.undo()
    assert run(*words) == 0
    recipe = gm.Recipe.for_method("MD", "digits", 1, "smoke", 0, outer_loops=2)
    assert torch.equal(gm.SyntheticSet.load(out).images, gm.condense(digits, recipe, progress=False).images)


def test_it_runs_as_a_module():
    found = subprocess.run([sys.executable, "-m", "gmlib.cli", "--help"], capture_output=True, text=True, check=True)
    assert "condense" in found.stdout and "evaluate" in found.stdout


# ---- gmlib run -------------------------------------------------------------------------------------------

TINY = recipes.Budget(
    recipe={"width": 2, "depth": 2, "batch_real": 2, "outer_loops": 3}, many={"inner_loops": 2, "zeta_theta": 1},
    sets=2, networks=2, epochs=1,
)  # fmt: skip

CELLS = """dataset,ipc,method,seed,targets
made-up,1,DC,0,
made-up,1,"multi, d1+100*d4, fixed",0,

made-up,1,MD@mlp,1,convnet mlp
made-up,10,random,0,
"""


@pytest.fixture
def loads(monkeypatch):
    """Small data, a budget of milliseconds, and a list of what was loaded as (name, download)."""
    monkeypatch.setitem(recipes.BUDGETS, "tiny", TINY)
    found = []

    def load_data(name, *, download, **options):
        found.append((name, download))
        if name == "MNIST" and not download:
            raise FileNotFoundError("MNIST is not here")
        if name not in ("made-up", "MNIST"):
            return gm.load_data(name, download=False)
        return replace(make_data(dtype=torch.float32), name=name)

    monkeypatch.setattr(cli, "load_data", load_data)
    return found


def run_cells(folder, text=CELLS, *more):
    (folder / "cells.csv").write_text(text)
    where = ("--cells", folder / "cells.csv", "--results-dir", folder / "results", "--device", "cpu")
    return run("run", *where, "--budget", "tiny", "--precision", "float32", "--quiet", *more)


def without_times(printed):
    """The lines on the standard output without when they were printed and how long a cell took."""
    return [re.sub(r", in \d+:\d\d:\d\d$", "", line.split(" ", 2)[2]) for line in printed.splitlines()]


def test_the_cells_of_a_file_are_done_once(tmp_path, loads, monkeypatch, capsys):
    assert run_cells(tmp_path) == 0
    printed = capsys.readouterr()
    lines = without_times(printed.out)
    assert printed.err == "" and all(re.search(r", in 0:00:\d\d$", line) for line in printed.out.splitlines())
    options = {"budget": "tiny", "device": "cpu", "progress": False, "results_dir": tmp_path / "by-hand"}
    options |= {"dtype": torch.float16}
    data = make_data(dtype=torch.float32)
    mlp = {"network": "mlp", "seed": 1, "targets": ["convnet", "mlp"]}
    by_hand = {
        "DC, set 0": store.run(data, "DC", 1, snapshots=(1,), **options),
        "multi,d1+100*d4,fixed, set 0": store.run(data, "multi,d1+100*d4,fixed", 1, snapshots=(1,), **options),
        "MD@mlp, set 1": store.run(data, "MD", 1, **mlp, **options),
    }
    by_hand = {f"made-up, IPC 1, {name}": run for name, run in by_hand.items()}
    by_hand["made-up, IPC 10, random, set 0"] = store.run(data, "random", 10, **options)
    for line, (name, made) in zip(lines, by_hand.items(), strict=True):
        half_way = "".join(f", after {k} of 3 outer iterations {e}" for k, (_, e) in made.trace.items())
        assert line == f"{name}: {made}{half_way}"
    assert "after 1 of 3" in lines[0] and "convnet " in lines[2] and ", mlp " in lines[2]
    S = gm.load_condensed("made-up", 1, "DC", budget="tiny", results_dir=tmp_path / "results")
    assert torch.equal(S.images, by_hand["made-up, IPC 1, DC, set 0"].S.images)

    before = contents(tmp_path / "results")
    for module, name in ((store, "condense_together"), (store, "coreset"), (evaluation, "fit")):
        monkeypatch.setattr(module, name, None)
    assert run_cells(tmp_path, CELLS, "--time-budget", 0) == 0
    again = without_times(capsys.readouterr().out)
    assert again == [f"{line} (stored)" for line in lines] and contents(tmp_path / "results") == before


HEADER = "dataset,ipc,method,seed,targets\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["cells.csv holds no cell", "dataset,ipc,method,seed"]),
        (HEADER, ["holds no cell"]),
        ("dataset,ipc,methods,seed\nmade-up,1,DC,0", ["line 1", "column 'methods'", "did you mean 'method'"]),
        ("dataset,method\nmade-up,DC", ["line 1", "0 columns ipc"]),
        ("seed,dataset,ipc,method,seed\n0,made-up,1,DC,0", ["line 1", "2 columns seed"]),
        (HEADER + "made-up,1,DC,0,\nmade-up,one,DC,0,", ["line 3", "ipc='one'", "whole number"]),
        (HEADER + "made-up,0,DC,0,", ["line 2", "ipc=0", "at least 1"]),
        (HEADER + "made-up,1 10,DC,0,", ["line 2", "ipc='1 10'"]),
        (HEADER + "made-up,1,DC,0 -1,", ["line 2", "seed='-1'", "at least 0"]),
        (HEADER + "made-up,1,,0,", ["line 2", "no method"]),
        (HEADER + ",1,DC,0,", ["line 2", "no dataset"]),
        (HEADER + "made-up,1,multi,d1+d3,fixed,0,", ["line 2", "7 values for 5 columns", '"multi,d1+d3,fixed"']),
        (HEADER + 'made-up,1,"DC,0,', ["line 2", "CSV"]),
        (HEADER + "MNIST,1,DC,0,\n\ndigit,1,DC,0,", ["line 4", "data set 'digit'", "did you mean 'digits'"]),
        (HEADER + "MNIST,1,DC,0,\nmade-up,1,MDX,0,", ["line 3", "method 'MDX'", "random"]),
        (HEADER + "MNIST,1,noise,0,", ["line 2", "method 'noise'"]),
        (HEADER + "made-up,1,DC@lenin,0,", ["line 2", "'lenin'", "lenet"]),
        (HEADER + "MNIST,1,DC,0,mlp lenin", ["line 2", "'lenin'", "lenet"]),
        (HEADER + 'made-up,1,"multi,d7,fixed",0,', ["line 2", "'d7'"]),
        (HEADER + "made-up,13,random,0,", ["line 2", "ipc=13"]),
        (HEADER + "made-up,1,random@lenet,0,", ["line 2", "random@lenet", "write random"]),
        ("dataset,ipc,method,measure\nmade-up,1,DC,reech", ["line 2", "measure 'reech'", "'reach'"]),
        ("dataset,ipc,method,measure\nmade-up,1,,whole", ["line 2", "ipc='1'", "empty"]),
        ("dataset,ipc,method,measure\nmade-up,1,random,pulls", ["line 2", "'random'"]),
        ("dataset,ipc,method,measure,targets\nmade-up,1,DC,reach,mlp", ["line 2", "reach", "targets empty"]),
    ],
)
def test_bad_cells_are_one_sentence_and_nothing_is_written(text, said, tmp_path, loads, capsys):
    assert run_cells(tmp_path, text) == 2
    error = capsys.readouterr().err
    assert error.startswith("gmlib: ") and error.count("\n") == 1
    assert all(words in error for words in said), error
    assert [path.name for path in tmp_path.iterdir()] == ["cells.csv"]
    assert ("MNIST", True) not in loads, "nothing is downloaded before the names are checked"


SOME = "table,dataset,ipc,method\nTable 3,made-up,1,random DC\nTable 1,made-up,10,random\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--budget", "huge"), "budget 'huge'"),
        (("--networks", 0), "--networks 0"),
        (("--precision", "half"), "precision 'half'"),
        (("--time-budget", -1), "--time-budget -1.0"),
        (("--threads", 0), "--threads 0"),
        (("--device", "cudax"), "'cudax'"),
        (("--cells", "."), "there is no file"),
        (("--cells", "no.csv"), "no.csv"),
        (("--tables", "Table 9"), "unknown table 'Table 9': choose from Table 3, Table 1"),
        (("--datasets", "made-up", "digits"), "unknown data set 'digits': choose from made-up"),
        (("--methods", "random", "MTT"), "unknown method 'MTT': choose from random, DC"),
        (("--measures", "reach"), "unknown measure 'reach': choose from networks"),
        (("--ipc", 1, 7), "no cell has 7 images per class: choose from 1, 10"),
        (("--seeds", 0, 7), "no cell has the seed 7: choose from 0, 1"),
        (("--ipc", 10, "--methods", "DC"), "no cell has all that was chosen"),
        (("--methods", "DC", "--methods", "random"), "--methods is given twice"),
        (("--methods", "DC", "--methods=random"), "--methods is given twice"),
        (("--datasets", "--ipc", 1), "--datasets has no value"),
        (("--change", "rate=0.1"), "'rate': choose from "),
        (("--change", "how=d2"), "'how'"),
        (("--change", "width=8"), "'width'"),
        (("--change", "lr_images"), "lr_images=0.1"),
        (("--change", "lr_images=-1"), "lr_images=-1.0"),
        (("--change", "lr_images=1", "gap=1", "lr_images=2"), "lr_images: give it one value"),
        (("--change", "lam"), "lam=null"),
        (("--change", "lr_images=1", "--tables", "Table 1"), "a change is for condensed sets"),
    ],
)
def test_bad_options_are_one_sentence_and_nothing_is_written(more, said, tmp_path, loads, capsys):
    assert run_cells(tmp_path, SOME, *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("gmlib: ") and error.count("\n") == 1 and said in error
    assert [path.name for path in tmp_path.iterdir()] == ["cells.csv"]


def test_tables_cannot_be_chosen_where_none_is_named(tmp_path, loads, capsys):
    assert run_cells(tmp_path, CELLS, "--tables", "Table 3") == 2
    assert "no line names its table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "cells"),
    [
        ((), "random 0, DC 0, random 1, DC 1, random 0, random 1"),
        (("--tables", "Table 3", "--seeds", 1), "random 1, DC 1"),
        (("--ipc", 10), "random 0, random 1"),
        (("--methods", "DC", "--datasets", "made-up", "--measures", "networks"), "DC 0, DC 1"),
    ],
)
def test_some_cells_are_chosen(more, cells, tmp_path, loads, capsys):
    assert run_cells(tmp_path, SOME, "--dry-run", *more) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert ", ".join(re.sub(r".*, (\w+), set (\d): .*", r"\1 \2", line) for line in lines) == cells
    assert total.startswith(f"{len(lines)} of {len(lines)} are left")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.csv"], "a dry run writes nothing"


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "latin.csv").write_bytes("dataset,ipc,method\nimagefolder:é,1,DC\n".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        cells.read_lines(tmp_path / "latin.csv")


def lines_of(folder, text):
    (folder / "cells.csv").write_bytes(text.encode())
    return cells.read_lines(folder / "cells.csv")


def test_a_file_as_spreadsheets_write_it(tmp_path):
    (line,) = lines_of(tmp_path, '\ufeffdataset, ipc, method, seed\r\nMNIST, 10, "multi,d2,fixed", 1\r\n,,,\r\n')
    (cell,) = line.cells(20)
    assert cell == cells.Cell("MNIST", 10, "multi,d2,fixed", 1) and cell.place.endswith("cells.csv, line 2")


def test_a_line_stands_for_every_combination_of_its_names(tmp_path):
    text = "table,measure,dataset,ipc,method,seed,targets\n"
    text += 'Table 2,,MNIST  digits,1,"DC  multi, d2, fixed",3 5,mlp convnet\n,whole,digits,,,,\n'
    text += ",reach,imagefolder:my photos,1,noise DC,,\n"
    two, whole, photos = lines_of(tmp_path, text)
    in_order = [(cell.dataset, cell.seed, cell.method) for cell in two.cells(9)]
    of_one = [(3, "DC"), (3, "multi,d2,fixed"), (5, "DC"), (5, "multi,d2,fixed")]
    assert in_order == [(dataset, *more) for dataset in ("MNIST", "digits") for more in of_one]
    assert {(cell.table, cell.targets, cell.measure) for cell in two.cells(9)} == {
        ("Table 2", ("mlp", "convnet"), "networks")
    }
    assert list(whole.cells(9)) == [cells.Cell("digits", None, "whole", measure="whole")]
    assert [(cell.dataset, cell.seed, cell.method, cell.measure) for cell in photos.cells(2)] == [
        ("imagefolder:my photos", seed, method, "reach") for seed in (0, 1) for method in ("noise", "DC")
    ]


def test_all_training_images_belong_to_every_choice_of_images_per_class(tmp_path):
    lines = lines_of(tmp_path, "dataset,ipc,method,measure\nA,1,DC,\nA,10,DC,\nA,,,whole\n")
    chosen = cells.Wanted(ipc=[10], seeds=[1]).of(lines, 2)
    assert [str(cell) for cell in chosen] == ["A, IPC 10, DC, set 1", "A, all training images"]


def test_a_set_that_is_missing_is_downloaded_once(tmp_path, loads):
    assert run_cells(tmp_path, HEADER + "MNIST,1,random,0,\nMNIST,1,random,1,") == 0
    assert loads[-1] == ("MNIST", True) and loads.count(("MNIST", True)) == 1


def test_only_sets_then_networks_give_what_one_run_gives(tmp_path, loads, monkeypatch, capsys):
    (tmp_path / "again").mkdir()
    assert run_cells(tmp_path / "again") == 0
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "fit", None)
        assert run_cells(tmp_path, CELLS, "--only-sets") == 0
        capsys.readouterr()
        assert run_cells(tmp_path, CELLS, "--only-sets", "--dry-run") == 0
        assert capsys.readouterr().out.endswith("\n0 of 4 are left\n")
    sets = {
        name: content for name, content in contents(tmp_path / "results").items() if name.endswith(".safetensors")
    }
    monkeypatch.setattr(store, "condense_together", None)
    assert run_cells(tmp_path, CELLS, "--networks", 1) == 0 and run_cells(tmp_path) == 0
    both = contents(tmp_path / "results"), contents(tmp_path / "again" / "results")
    assert set(both[0]) == set(both[1]) and all(both[1][name] == content for name, content in sets.items())
    accuracies = [json.loads(found[name])["accuracies"] for name in both[0] if "accuracy-" in name for found in both]
    assert accuracies[::2] == accuracies[1::2] and len(accuracies) == 2 * 5


def test_a_time_budget_has_its_own_exit_status(tmp_path, loads, capsys):
    assert run_cells(tmp_path, CELLS, "--time-budget", 0) == 3
    said = "gmlib: the time budget is used up and 4 of 4 cells are left: run again to continue\n"
    assert capsys.readouterr().err == said
    assert contents(tmp_path / "results") == {}
    assert run_cells(tmp_path, HEADER + "made-up,10,random,0,") == 0
    lines = without_times(capsys.readouterr().out)
    log = tmp_path / "logs" / "run.log"
    assert run_cells(tmp_path, CELLS, "--time-budget", 0, "--log", log) == 3
    printed = capsys.readouterr()
    assert without_times(printed.out) == [f"{line} (stored)" for line in lines] and "3 of 4" in printed.err
    first, second = log.read_text().splitlines()
    assert f"{first}\n" == printed.out and second.endswith(printed.err.removeprefix("gmlib: ").strip())


def test_interrupted_cells_continue_to_the_same_bits(tmp_path, loads, monkeypatch, capsys):
    real, seen = condensation.algorithm_1, []

    def interrupted(*arguments, **options):
        for update in real(*arguments, **options):
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(update)
            yield update

    text = HEADER + "made-up,1,DC,0,\nmade-up,1,M,0,"
    with monkeypatch.context() as patch:
        patch.setattr(condensation, "algorithm_1", interrupted)
        patch.setattr(condensation.Checkpoint, "age", lambda self: 1e9)  # a checkpoint after every update
        assert run_cells(tmp_path, text) == 130
    assert "continue" in capsys.readouterr().err
    assert sum(name.endswith("checkpoint.safetensors") for name in contents(tmp_path / "results")) == 2
    assert run_cells(tmp_path, text) == 0
    (tmp_path / "again").mkdir()
    assert run_cells(tmp_path / "again", text) == 0
    first, second = contents(tmp_path / "results"), contents(tmp_path / "again" / "results")
    assert set(first) == set(second) and len(first) == 10
    assert all(first[name] == second[name] for name in first if name.endswith(".safetensors"))


def test_a_cell_with_a_damaged_file_does_not_stop_the_others(tmp_path, loads, capsys):
    """Also one that shares networks with the others. Its file is found when the cell is begun, not before."""
    folder = tmp_path / "results" / "tiny" / "made-up" / "ipc1" / "M" / "set0"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"damaged")
    text = HEADER + "".join(f"made-up,1,{method},0,\n" for method in ("DC", "M", "MD"))
    assert run_cells(tmp_path, text) == 1
    printed = capsys.readouterr()
    assert [line.split(": ")[0] for line in without_times(printed.out)] == [
        f"made-up, IPC 1, {method}, set 0" for method in ("DC", "MD")
    ]
    assert printed.err.startswith(f"gmlib: made-up, IPC 1, M, set 0: {folder}") and printed.err.count("\n") == 1
