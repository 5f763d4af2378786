"""What the page on cost says about methods made together and about bfloat16."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import gmreport as report
from gmlib.analysis.statistics import half_width

TOGETHER = Path(__file__).parent.parent / "benchmarks" / "together.py"
KINDS = ("apart, float32", "apart, bf16", "together, float32", "together, bf16")


def probed(*rows):
    """Rows of `probes`. The base has the other of the two precisions."""
    columns = ["dataset", "ipc", "method", "budget", "set", "change", "gain", "n"]
    found = pd.DataFrame([dict(zip(columns, row, strict=True)) for row in rows], columns=columns)
    bf16 = found["change"] == "precision=float32"
    return found.assign(base_precision=bf16.map({True: "bf16", False: "float32"}))


def test_pairs_have_one_sign_and_leave_out_other_changes():
    pairs = report.precision_pairs(
        probed(
            ("MNIST", 1, "DC", "lite", 0, "precision=bf16", 0.5, 5),
            ("MNIST", 1, "DC", "lite", 1, "precision=float32", 0.25, 5),
            ("MNIST", 1, "DC", "lite", 0, "zeta_theta=5", 9.0, 5),
        )
    )
    assert pairs["difference"].tolist() == [0.5, -0.25]
    assert pairs["set"].tolist() == [0, 1]


def test_a_probe_with_the_precision_of_its_base_is_no_pair():
    """With precision="auto" the base may have it already. Such a pair has a difference of 0 and says nothing."""
    rows = [("MNIST", 1, "DC", "lite", 0, f"precision={p}", 0.0, 5) for p in ("bf16", "float32", "bf16", "float32")]
    found = probed(*rows).assign(base_precision=["bf16", "float32", "tf32", "tf32+bf16"])
    assert report.precision_pairs(found).empty


def test_the_effect_is_a_mean_over_pairs_with_its_interval():
    gains = [0.4, -0.2, 0.1, 0.3]
    rows = [("MNIST", 1, m, "lite", s, "precision=bf16", 0.0, 5) for m in ("DC", "M") for s in (0, 1)]
    rows = [(*row[:6], gain, 5 + i) for i, (row, gain) in enumerate(zip(rows, gains, strict=True))]
    pairs = report.precision_pairs(probed(*rows, ("FashionMNIST", 1, "DC", "lite", 0, "precision=bf16", -1.0, 5)))
    text = report.precision_effect(pairs).data
    half = half_width(pairs["difference"].to_numpy()[:4])
    assert f"MNIST, 1 image per class, lite budget: +0.15 points ({0.15 - half:+.2f} to {0.15 + half:+.2f})" in text
    assert "4 pairs with at least 5 networks" in text and "may be too narrow" in text
    assert "FashionMNIST, 1 image per class, lite budget: -1.00 points, 1 pair" in text
    table = report.precision_pairs_table(pairs)
    assert table.cells["MNIST, IPC 1: DC, set 1 (lite)", "bfloat16 minus float32"] == ["-0.2", "n=6"]


def test_nothing_stored_is_said():
    assert "No set was made in both precisions" in report.precision_effect(report.precision_pairs(probed())).data
    assert "was not measured yet" in report.together_sentence({}).data


def call(*words):
    """`python together.py words` in this process. Returns the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(TOGETHER), *words])
        return runpy.run_path(str(TOGETHER), run_name="together")["main"]()


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A file of benchmarks/together.py in toy sizes. What it starts as a process is called here."""
    started, really = [], subprocess.run

    def run(words, check=False, **options):
        if words[:2] != [sys.executable, str(TOGETHER)]:
            return really(words, check=check, **options)
        assert check
        started.append(words[3:5])
        assert call(*words[2:]) == 0

    monkeypatch.setattr(subprocess, "run", run)
    assert call("--quick", "--rounds", "1", "--out", str(tmp_path / "here.json")) == 0
    assert sorted(map(", ".join, started)) == sorted(2 * KINDS), "a short and a longer process of each kind"
    return tmp_path / "here.json"


def test_the_measurement_has_every_kind_and_the_page_shows_it(quick):
    content = json.loads(quick.read_text())
    assert set(content["seconds"]) == set(content["times_as_fast"]) == set(KINDS)
    assert all(len(seconds) == 1 for seconds in content["seconds"].values())
    content["median"] = dict(zip(KINDS, (48.0, 26.0, 6.5, 4.0), strict=True))  # toy sizes differ by noise only
    quick.write_text(json.dumps(content))
    (stored,) = report.stored_together(quick.parent).values()
    text = report.together_sentence({"here": stored}).data
    assert "10 methods take 48.0 s per outer iteration one after another and 6.5 s together" in text
    assert "4.0 s together in bfloat16" in text
    table = report.together_table(stored)
    assert table.rows == list(stored["seconds"]) and "ConvNet-3-8" in table.caption


def test_bad_input_measures_nothing(tmp_path, capsys):
    assert call("--rounds", "0", "--out", str(tmp_path / "x")) == 2
    assert capsys.readouterr().err.startswith("together: rounds") and not list(tmp_path.iterdir())
