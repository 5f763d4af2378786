"""Notebooks as batch jobs: parameters, bad input, failing cells, kills, and a log that can be read."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from gmreport import batch

# papermill warns about MyST; `batch` hides that, but pytest makes warnings errors again.
pytestmark = pytest.mark.filterwarnings(r"ignore:The specified file \(myst")

PAGE = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
---

# A page

```{code-cell} ipython3
:tags: [parameters]

dataset = "digits"  # a name
ipc = [1, 10]       # images: 1, 10
rate = 0.1
device = "cpu"
```

## The run

```{code-cell} ipython3
CODE
```
"""


def page(folder: Path, code: str = "") -> str:
    """Write a notebook with that code in its second cell; return its path."""
    path = folder / "page.md"
    path.write_text(PAGE.replace("CODE", code))
    return str(path)


def outputs(path: str | Path) -> list:
    return [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Run each test in its own folder, where a kernel "python3" is installed that cannot run."""
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)


def test_cells_get_typed_parameters_and_run_with_this_python(tmp_path, capfd):
    code = """
import os, sys
from tqdm import tqdm
print(repr((dataset, ipc, rate, device)), sys.executable, os.getcwd(), sep="|")
print("\\x1b[31mwarned\\x1b[0m", file=sys.stderr)
for i in tqdm(range(3), desc="sets", mininterval=10):
    sys.stderr.flush()
"""
    given = ["-p", "dataset", "MNIST,SVHN", "-p", "ipc", "[1, 30]", "-p", "rate", "1e-3", "-p", "device", "None"]
    assert batch.main([page(tmp_path, code), "made/out.ipynb", *given]) == 0
    assert os.listdir("made") == ["out.ipynb"]
    assert nbformat.read("made/out.ipynb", 4).metadata.papermill["output_path"] == "made/out.ipynb"
    printed = [output.text for output in outputs("made/out.ipynb") if output.name == "stdout"]
    assert printed == [f"('MNIST,SVHN', [1, 30], 0.001, None)|{sys.executable}|{tmp_path}\n"]
    on_stderr = [output.text for output in outputs("made/out.ipynb") if output.name == "stderr"]
    assert [text.count("\r") for text in on_stderr] == [0]  # the last state of the bar is kept
    log = capfd.readouterr()
    assert log.err == ""  # the kernel and papermill say nothing about themselves
    assert not {"\r", "\x1b"} & set(log.out)
    lines = [re.sub(r"^\d+ s: ", "", line) for line in log.out.splitlines()]
    assert lines[:3] == ["cell 1 of 3, A page", "cell 2 of 3, A page", "cell 3 of 3, The run"]
    assert printed[0].rstrip() in lines and "warned" in lines
    first, last = (line for line in lines if line.startswith("sets"))
    assert "0/3" in first and "3/3" in last
    assert len(lines) == 8 and lines[-1] == "done, see made/out.ipynb"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("None", None),
        ("7", 7),
        ("1e-3", 0.001),
        ("true", "true"),
        ("1,10", "1,10"),
        ("[1, 10]", [1, 10]),
        ("[DC, M]", ["DC", "M"]),
        ('["DC", "multi,d1,fixed"]', ["DC", "multi,d1,fixed"]),
    ],
)
def test_values_are_read_as_papermill_reads_them_and_lists_too(text, value):
    found = batch._value(text)
    assert found == value and type(found) is type(value)


def test_the_output_holds_the_error_of_a_failing_cell(tmp_path, capsys):
    out = tmp_path / "out.ipynb"
    out.write_text("an older one")
    code = 'print("first", end="")\nraise ValueError("no such thing:\\ngive another")'
    assert batch.main([page(tmp_path, code), "out.ipynb"]) == 1
    log = capsys.readouterr()
    assert log.out.splitlines()[2] == "first"
    assert log.err == f"gmreport.batch: cell 2 of {tmp_path}/page.md failed: ValueError: no such thing:\n"
    assert [o.ename for o in outputs(out) if o.output_type == "error"] == ["ValueError"]
    assert "An Exception was encountered" in nbformat.read(out, 4).cells[0].source
    assert {path.name for path in tmp_path.iterdir()} == {"jupyter", "page.md", "out.ipynb"}


def test_a_killed_kernel_is_a_failing_cell(tmp_path, capsys):
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    assert batch.main([page(tmp_path, code), "out.ipynb"]) == 1
    assert "cell 2" in (message := capsys.readouterr().err) and "DeadKernelError" in message
    assert [[o.ename for o in cell.outputs] for cell in nbformat.read("out.ipynb", 4).cells if "outputs" in cell] == [
        [],
        ["DeadKernelError"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jupyter", "out.ipynb", "page.md"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out.ipynb", "-p", "datset", "MNIST"], ["'datset'", "did you mean dataset?", "dataset, ipc, rate, device"]),
        (["out.ipynb", "-p", "budget", "lite"], ["no parameter 'budget'", "dataset, ipc, rate, device"]),
        (["out.ipynb", "-p", "ipc", "1", "-p", "ipc", "10"], ["twice"]),
        (["out.ipynb", "-p", "ipc", "[1,"], ["[1, is not a list"]),
        (["out.md"], [".ipynb"]),
        (["page.md/out.ipynb"], ["folder page.md"]),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(arguments, words, tmp_path, capsys):
    notebook = page(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert batch.main([notebook, *arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words) and message.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_files_that_are_not_a_notebook_are_refused(tmp_path, capsys):
    Path("plain.md").write_text("# Only text\n")
    Path("broken.ipynb").write_text("{}")
    Path("whole.ipynb").write_text(batch.MyST.read(f"myst://{page(tmp_path)}"))
    for notebook, words in {
        "absent.md": "cannot be read",
        ".": "cannot be read",
        "plain.md": "no cell tagged",
        "broken.ipynb": "cannot be read",
        "whole.ipynb": "would replace",
    }.items():
        out = "folder/../whole.ipynb" if notebook == "whole.ipynb" else "folder/out.ipynb"
        assert batch.main([notebook, out]) == 2
        message = capsys.readouterr().err
        assert words in message and message.count("\n") == 1
    assert not Path("folder").exists()


def test_a_signal_stops_the_kernel_and_nothing_is_written(tmp_path):
    code = """
import os, time
from tqdm import tqdm
print("started", os.getpid(), tqdm(range(3)).mininterval, flush=True)
time.sleep(600)
"""
    before = sorted([*tmp_path.rglob("*"), Path(page(tmp_path, code))])
    jobs = {
        number: subprocess.Popen(
            [sys.executable, "-m", "gmreport.batch", "page.md", f"out-{number}.ipynb"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    for number, job in jobs.items():
        _, kernel, seconds = next(line for line in job.stdout if line.startswith("started")).split()
        assert float(seconds) == 10  # between two states of a progress bar
        job.send_signal(number)
        _, message = job.communicate(timeout=60)
        assert job.returncode == 128 + number
        assert message.startswith("gmreport.batch: stopped") and message.count("\n") == 1
        with pytest.raises(ProcessLookupError):
            os.kill(int(kernel), 0)
    assert sorted(tmp_path.rglob("*")) == before


def test_papermill_reads_myst(tmp_path):
    page(tmp_path)
    command = [
        Path(sys.executable).with_name("papermill"),
        "myst://page.md",
        "out.ipynb",
        "--prepare-only",
        "-p",
        "ipc",
        "1",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert printed.splitlines() == ["Input Notebook:  myst://page.md", "Output Notebook: out.ipynb"]
    sources = [cell.source for cell in nbformat.read("out.ipynb", 4).cells if cell.cell_type == "code"]
    assert len(sources) == 3 and sources[0].startswith('dataset = "digits"') and "ipc = 1" in sources[1]


def test_each_state_of_a_progress_bar_is_a_line():
    stream = io.StringIO()
    log = batch._Log(stream, n_cells=1)
    for text in ("one\ntw", "o\r\n\n", "\rM: 0 of 30", "\rM: 30 of 30", "\n", "three"):
        log.write(text)
    assert stream.getvalue() == "one\ntwo\nM: 0 of 30\nM: 30 of 30\nthree"
    log.note("done")
    assert stream.getvalue().endswith("\nthree\n0 s: done\n")


def test_a_bar_within_a_bar_is_read_too():
    """tqdm goes down a line for the inner bar and back up."""
    stream = io.StringIO()
    log = batch._Log(stream, n_cells=1)
    for step in range(2):
        log.write(f"\rsets: {step} of 2")
        log.write(f"\n\rM: {step} of 30\x1b[A")
    assert stream.getvalue().splitlines() == ["sets: 0 of 2", "M: 0 of 30", "sets: 1 of 2", "M: 1 of 30"]
