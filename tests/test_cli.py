"""The command `gmlib`."""

import subprocess
import sys

import pytest
import torch

import gmlib as gm
from gmlib import cli, condensation

SMALL = ["--budget", "smoke", "--set", "outer_loops=2", "--quiet"]


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


def test_values_of_fields_are_json_or_words(tmp_path):
    out = tmp_path / "set.safetensors"
    assert (
        run(
            "condense",
            "digits",
            "--out",
            out,
            "--set",
            "lr_images=0.05",
            "--set",
            "init=real",
            "--method",
            "M",
            *SMALL,
        )
        == 0
    )
    made = gm.SyntheticSet.load(out).recipe
    assert (made["lr_images"], made["init"], made["outer_loops"]) == (0.05, "real", 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["condense", "digit", "--out", "x"], "digits"),
        (["condense", "digits", "--out", "x", "--method", "MDX"], "MDA"),
        (["condense", "digits", "--out", "x", "--set", "lr=1"], "lr_images"),
        (["condense", "digits", "--out", "x", "--set", "ipc=3"], "lr_images"),
        (["condense", "digits", "--out", "x", "--set", "lr_images"], "value"),
        (["condense", "digits", "--out", "missing/x"], "folder"),
        (["evaluate", "missing.safetensors", "--data", "digits"], "missing.safetensors"),
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
    assert "continues" in capsys.readouterr().err
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1

    monkeypatch.undo()
    assert run(*words) == 0
    recipe = gm.Recipe.for_method("MD", "digits", 1, "smoke", 0, outer_loops=2)
    assert torch.equal(gm.SyntheticSet.load(out).images, gm.condense(digits, recipe, progress=False).images)


def test_it_runs_as_a_module():
    found = subprocess.run([sys.executable, "-m", "gmlib.cli", "--help"], capture_output=True, text=True, check=True)
    assert "condense" in found.stdout and "evaluate" in found.stdout
