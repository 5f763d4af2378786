"""The page "What it survives", and the check before the book is built."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gmreport as report
from gmreport import ready

ROOT = Path(__file__).parent.parent
ROWS = [
    {
        "kind": "kill",
        "what": "condense",
        "tried": 50,
        "held": 48,
        "lost": 1,
        "silent": 0,
        "traceback": 1,
        "leftovers": 2,
    },
    {
        "kind": "flip a bit",
        "what": "set",
        "tried": 30,
        "held": 30,
        "lost": 0,
        "silent": 0,
        "traceback": 0,
        "leftovers": 0,
    },
]
FAULTS = {"machine": {"system": "Linux", "cores": 2}, "commit": "0123456789ab", "rows": ROWS, "seconds": 600.0}


def stored(tmp_path, **changes):
    path = tmp_path / "faults.json"
    path.write_text(json.dumps(FAULTS | changes))
    return report.stored_faults(path)


def test_the_page_shows_every_kind_and_their_sums(tmp_path):
    found = stored(tmp_path, rows=[*ROWS, ROWS[0] | {"what": "evaluate"}])
    short = report.faults_table(found, each=False)
    assert short.rows == ["kill", "flip a bit", "all"] and short.cells["kill", "held"] == ["96"]
    found = stored(tmp_path)
    sentence, table = report.faults_sentence(found).data, report.faults_table(found)
    assert "78 of 80 trials" in sentence and "1 lost" in sentence and "2 left" in sentence
    assert table.rows == ["kill: condense", "flip a bit: set", "all"]
    assert [table.cells["all", column] for column in table.columns] == [["80"], ["78"], ["1"], ["0"], ["1"], ["2"]]
    assert "10 minutes" in table.caption and "cores 2" in table.caption


def test_without_a_campaign_one_sentence_says_so(tmp_path):
    assert report.stored_faults(tmp_path / "faults.json") is None
    assert report.faults_sentence(None).data.count(".") == 2  # that of the file's name, and its own


@pytest.mark.parametrize(
    "changes", [{"rows": []}, {"rows": None}, {"seconds": "x"}, {"rows": [ROWS[0] | {"held": -1}]}]
)
def test_a_damaged_file_is_named(changes, tmp_path):
    with pytest.raises(ValueError, match="damaged"):
        stored(tmp_path, **changes)


# ---- before the book is built


@pytest.fixture
def copy(tmp_path):
    """The files that the check looks at."""
    for name in ready.LINKS:
        whole = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        whole(ROOT / name, tmp_path / name)
    (tmp_path / "book").mkdir()
    for name in ready.LINKS:
        (tmp_path / "book" / name).symlink_to(Path("..", name))
    return tmp_path / "book"


def test_this_repository_is_ready():
    assert ready.problem(ROOT / "book") is None


@pytest.mark.parametrize("name", ready.LINKS)
@pytest.mark.parametrize("how", ["text", "nothing"])
def test_a_copy_without_links_is_named_and_make_mends_it(name, how, copy):
    """A ZIP without links holds files with the path of the target."""
    assert ready.problem(copy) is None
    (copy / name).unlink()
    if how == "text":
        (copy / name).write_text(f"../{name}")
    message = ready.problem(copy)
    assert name in message and "make links" in message and "\n" not in message


def test_another_jupyter_book_is_named(copy, monkeypatch):
    monkeypatch.setattr(ready, "version", lambda name: "2.0.1")
    assert "'jupyter-book<2'" in ready.problem(copy) and "2.0.1" in ready.problem(copy)


def test_make_links_makes_the_links_again(copy):
    shutil.copyfile(ROOT / "Makefile", copy.parent / "Makefile")
    for name in ready.LINKS:
        (copy / name).unlink()
        (copy / name).write_text(f"../{name}")
    subprocess.run(["make", "links"], cwd=copy.parent, check=True, capture_output=True)
    assert ready.problem(copy) is None


def test_the_check_is_a_command(copy):
    command = [sys.executable, "-m", "gmreport.ready", str(copy)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    (copy / "_toc.yml").unlink()
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 1 and said.stderr.count("\n") == 1 and "_toc.yml" in said.stderr
