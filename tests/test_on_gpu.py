"""workflow/on_gpu.sh, as on a machine with a GPU, but in toy sizes on the CPU."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from gmlib.recipe import BUDGETS
from gmlib.runs.cells import FILE, Wanted, read_lines
from gmlib.runs.readback import load_results

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "workflow" / "on_gpu.sh"
STUBBORN = "trap '' INT TERM; sleep 900"  # hangs, and does not react to signals


def environment(folder, cases="", **given):
    """A python3 that does something else if its arguments fit a case of the shell, and no settings of the user."""
    stub = folder / "bin" / "python3"
    stub.parent.mkdir(parents=True, exist_ok=True)
    stub.write_text(f'#!/bin/bash\ncase "$*" in\n{cases}\nesac\nexec {sys.executable} "$@"\n')
    stub.chmod(0o755)
    names = ("OUT", "DATA", "SITE", "RESULTS", "DRY", "COMMIT", "PART", "SECONDS_TOTAL", "PYTHONPATH", "GMLIB_DATA")
    rest = {name: value for name, value in os.environ.items() if name not in names}
    return rest | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "OUT": str(folder / "out"), "DRY": "1"} | given


def on_gpu(folder, *stages, **given):
    """Run the script in a folder. Returns the exit status and what was said."""
    env = environment(folder, **given)
    done = subprocess.run(["bash", SCRIPT, *stages], cwd=folder, capture_output=True, text=True, env=env)
    return done.returncode, done.stdout + done.stderr


def unpacked(folder):
    """The archive, unpacked. It, or its parts, are all that was left."""
    files = sorted((folder / "out").iterdir())
    assert {path.name.partition(".part")[0] for path in files} == {"on_gpu.tar.gz"}
    with tarfile.open(fileobj=io.BytesIO(b"".join(path.read_bytes() for path in files))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return folder / "unpacked" / "on_gpu"


def statuses(found):
    """{stage: status} of a summary."""
    return {line["stage"]: line["status"] for line in json.loads((found / "summary.json").read_text())["stages"]}


def names_in(log):
    """The names of the tests in what pytest said."""
    return set(re.findall(r"^(tests/.*?) (?:SKIPPED|PASSED)", log.read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A call that ends well: (folder, what it said)."""
    folder = tmp_path_factory.mktemp("on gpu")
    status, said = on_gpu(folder, "about", "tests", "bench", "tables", "failing", SECONDS_TOTAL="3000", COMMIT="abc")
    assert status == 0, said
    return unpacked(folder), said


def test_a_call_leaves_one_archive_with_everything(finished):
    found, said = finished
    assert statuses(found) == dict.fromkeys(("about", "tests", "bench", "tables", "failing"), "ok")
    assert all(re.search(rf"^{name} +ok +\d+$", said, re.MULTILINE) for name in statuses(found)), "the summary"
    assert "commit abc\n" in (found / "about.log").read_text()
    assert json.loads((found / "bench.json").read_text())["cases"]["pass/1x8x8/C3"]["ratio"] > 0
    (row,) = load_results(found / "results" / "smoke").to_dict("records")
    assert (row["dataset"], row["ipc"], row["method"], row["set"]) == ("digits", 1, "DC", 0)


def test_tests_whose_recordings_fail_are_apart(finished):
    found, _ = finished
    last, first = names_in(found / "failing.log"), names_in(found / "tests.log")
    assert len(last) == 3 and not last & first
    of_files = {name.partition("::")[0] for name in first}
    assert of_files == {
        f"tests/test_{name}.py" for name in ("cuda", "kernels", "evaluate", "data", "coreset", "growth")
    }
    every = (ROOT / "tests" / "test_cuda.py").read_text()
    assert {name.split("::")[1].partition("[")[0] for name in first | last} >= set(
        re.findall(r"def (test_\w+)", every)
    )


def test_a_later_call_goes_on_and_a_stage_that_fails_costs_only_itself(finished, tmp_path):
    before = finished[0] / "results"
    more = {"RESULTS": str(before), "SECONDS_TOTAL": "3000", "PART": "4000"}
    status, said = on_gpu(tmp_path, "hours", "tables", cases="*/workflow.py*) echo no hours; exit 7 ;;", **more)
    assert status == 1 and "no hours" in said
    found = unpacked(tmp_path)
    assert len(list((tmp_path / "out").iterdir())) > 1, "it is cut into parts"
    assert statuses(found) == {"hours": "failed", "tables": "ok"}
    assert "(stored)" in (found / "tables.log").read_text()
    of_run = "smoke/digits/ipc1/DC/set0/run.json"
    assert (found / "results" / of_run).read_bytes() == (before / of_run).read_bytes()


def test_a_stage_that_hangs_is_killed_and_the_archive_comes_all_the_same(tmp_path):
    hangs = f"*bench.py*) echo begun; {STUBBORN} ;;"
    status, said = on_gpu(tmp_path, "bench", "about", cases=hangs, SECONDS_TOTAL="15")
    found = unpacked(tmp_path)
    assert status == 1 and statuses(found) == {"bench": "timed out", "about": "no time left"}
    assert (found / "bench.log").read_text() == "begun\n" and "timed out" in said


def test_a_script_that_is_terminated_leaves_the_archive(tmp_path):
    env = environment(tmp_path, f"*bench.py*) echo begun; {STUBBORN} ;;")
    script = subprocess.Popen(["bash", SCRIPT, "bench", "hours"], env=env, stdout=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "out" / "on_gpu" / "bench.log", time.monotonic() + 120
    while not (log.is_file() and log.read_text()):
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.1)
    script.send_signal(signal.SIGTERM)
    said, _ = script.communicate(timeout=120)
    assert script.returncode == 1 and "terminated" in said
    assert statuses(unpacked(tmp_path)) == {"bench": "terminated"}


def test_missing_packages_are_named_before_anything_runs(tmp_path):
    status, said = on_gpu(tmp_path, "tables", cases=f'*) exec {sys.executable} -S "$@" ;;')
    assert status == 2 and not (tmp_path / "out").exists()
    assert said.count("\n") == 1 and "tyro (tables)" in said and "docstring-parser" in said and "SITE=" in said


@pytest.mark.parametrize(
    ("stages", "given", "word"),
    [
        (["tabels"], {}, "tabels"),
        ([], {"SECONDS_TOTAL": "10m"}, "10m"),
        ([], {"RESULTS": "none"}, "RESULTS="),
        ([], {"SITE": "none"}, "SITE="),
        ([], {"OUT": "bin/.."}, "earlier call"),
    ],
)
def test_bad_input_runs_nothing(stages, given, word, tmp_path):
    (tmp_path / "on_gpu.tar.gz").touch()
    status, said = on_gpu(tmp_path, *stages, **given)
    assert status == 2 and word in said and said.startswith("on_gpu: ") and said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "on_gpu.tar.gz"}


def test_its_cells_are_those_of_the_tables():
    of_tables = set(Wanted().of(read_lines(FILE), BUDGETS["paper"].sets))
    cells = Wanted().of(read_lines(SCRIPT.with_suffix(".csv")), BUDGETS["paper"].sets)
    assert set(cells) <= of_tables
