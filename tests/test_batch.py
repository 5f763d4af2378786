"""Notebooks as batch jobs: parameters, refusals, failing cells, kills, and a log that can be read."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from gmreport import batch

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
    """The path of a notebook with that code in its second cell."""
    path = folder / "page.md"
    path.write_text(PAGE.replace("CODE", code))
    return str(path)


def outputs(path: str | Path) -> list:
    return [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Tests work in a folder of their own, where a "python3" is installed that cannot run."""
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)


def test_parameters_reach_the_cells_with_their_types_and_this_python_runs_them(tmp_path, capfd):
    code = """
import os, sys
from tqdm import tqdm
print(repr((dataset, ipc, rate, device)), sys.executable, os.getcwd(), sep="|")
print("\\x1b[31mwarned\\x1b[0m", file=sys.stderr)
for i in tqdm(range(3), desc="sets", mininterval=0):
    sys.stderr.flush()
"""
    given = ["-p", "dataset", "MNIST,SVHN", "-p", "ipc", "[1, 30]", "-p", "rate", "1e-3", "-p", "device", "None"]
    assert batch.main([page(tmp_path, code), "made/out.ipynb", *given]) == 0
    assert os.listdir("made") == ["out.ipynb"]
    printed = [output.text for output in outputs("made/out.ipynb") if output.name == "stdout"]
    assert printed == [f"('MNIST,SVHN', [1, 30], 0.001, None)|{sys.executable}|{tmp_path}\n"]
    assert [len(output.text.split("\r")) for output in outputs("made/out.ipynb") if output.name == "stderr"] == [1]
    log = capfd.readouterr()
    assert log.out == printed[0]
    assert not {"\r", "\x1b"} & set(log.err)
    lines = log.err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines if "cell" in line] == [
        "cell 1 of 3, A page", "cell 2 of 3, A page", "cell 3 of 3, The run",
    ]  # fmt: skip
    assert lines.count("warned") == 1
    states = [line for line in lines if line.startswith("sets")]
    assert (
        len(states) == 2 and "0/3" in states[0] and "3/3" in states[1]
    )  # the first and the last: it took no ten seconds
    assert lines[-1].endswith("done: made/out.ipynb")
    assert len(lines) == 7, "\n".join(lines)  # nothing that the kernel or papermill has to say about themselves


def test_a_failing_cell_is_one_line_and_stands_in_the_output(tmp_path, capsys):
    out = tmp_path / "out.ipynb"
    out.write_text("an older one")
    code = 'print("first", end="")\nraise ValueError("no such thing:\\ngive another")'
    assert batch.main([page(tmp_path, code), "out.ipynb"]) == 1
    log = capsys.readouterr()
    assert log.out == "first\n"
    assert log.err.splitlines()[2:] == [
        f"gmreport.batch: cell 2 of {tmp_path}/page.md failed, as out.ipynb shows: ValueError: no such thing:"
    ]
    assert [o.ename for o in outputs(out) if o.output_type == "error"] == ["ValueError"]
    assert "An Exception was encountered" in nbformat.read(out, 4).cells[0].source
    assert {path.name for path in tmp_path.iterdir()} == {"jupyter", "page.md", "out.ipynb"}


def test_a_killed_kernel_is_a_failing_cell(tmp_path, capsys):
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    assert batch.main([page(tmp_path, code), "out.ipynb"]) == 1
    assert "DeadKernelError: the kernel died" in capsys.readouterr().err.splitlines()[-1]
    assert [o.ename for o in outputs("out.ipynb")] == ["DeadKernelError"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["out.ipynb", "-p", "datset", "MNIST"],
            "'datset': did you mean dataset? It takes dataset, ipc, rate, device",
        ),
        (["out.ipynb", "-p", "budget", "lite"], "no parameter 'budget': page.md takes dataset, ipc, rate, device"),
        (["out.ipynb", "-p", "ipc", "1", "-p", "ipc", "10"], "ipc is given twice"),
        (["out.ipynb", "-p", "ipc", "[1,"], "ipc=[1, is no list"),
        (["out.md"], "ends in .ipynb"),
        (["page.md/out.ipynb"], "the folder page.md cannot be made"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(arguments, sentence, tmp_path, capsys):
    notebook = page(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert batch.main([notebook, *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_notebook_that_is_none_is_refused(tmp_path):
    Path("plain.md").write_text("# Only text\n")
    Path("broken.ipynb").write_text("{}")
    Path("whole.ipynb").write_text(batch.MyST.read(f"myst://{page(tmp_path)}"))
    for notebook, sentence in {
        "absent.md": "absent.md does not exist",
        ".": "is no notebook",
        "plain.md": 'no cell tagged "parameters"',
        "broken.ipynb": "cannot be read as a notebook",
        "whole.ipynb": "would replace the notebook",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            batch.run(notebook, "folder/../whole.ipynb" if notebook == "whole.ipynb" else "folder/out.ipynb", {})
    assert not Path("folder").exists()


def test_a_kill_stops_the_kernel_and_writes_nothing(tmp_path):
    code = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    before = sorted([*tmp_path.rglob("*"), Path(page(tmp_path, code))])
    job = subprocess.Popen(
        [sys.executable, "-m", "gmreport.batch", "page.md", "out.ipynb"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    kernel = int(job.stdout.readline())
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM
    assert (
        said.splitlines()[-1].startswith("gmreport.batch: stopped, nothing was written") and "Traceback" not in said
    )
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
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
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert said.splitlines() == ["Input Notebook:  myst://page.md", "Output Notebook: out.ipynb"]
    sources = [cell.source for cell in nbformat.read("out.ipynb", 4).cells if cell.cell_type == "code"]
    assert len(sources) == 3 and sources[0].startswith('dataset = "digits"') and "ipc = 1" in sources[1]


class Stream(list):
    write = list.append

    def flush(self):
        pass


def test_a_bar_is_a_line_every_ten_seconds_and_a_last_one(monkeypatch):
    stream, now = Stream(), 0
    monkeypatch.setattr(batch.time, "monotonic", lambda: now)
    log = batch._Log(stream)
    for now in range(30):
        log.write(f"\rM: {now} of 30")
    log.write("\rM: 30 of 30\n")
    assert stream == ["M: 0 of 30\n", "M: 10 of 30\n", "M: 20 of 30\n", "M: 30 of 30\n"]
    stream.clear()
    log.write("one\ntw")
    log.write("o\r\nthree")
    assert stream == ["one\n", "two\n"]
    log.end()
    assert stream == ["one\n", "two\n", "three\n"]


def test_bars_within_a_bar_keep_their_own_time(monkeypatch):
    """tqdm goes down a line for the inner bar and back up."""
    stream, now = Stream(), 0
    monkeypatch.setattr(batch.time, "monotonic", lambda: now)
    log = batch._Log(stream)
    for now in range(0, 30, 3):
        if now % 15 == 0:
            log.write(f"\rsets: {now // 15} of 2")
        log.write(f"\n\rM: {now} of 30\x1b[A")
    assert stream == ["sets: 0 of 2\n", "M: 0 of 30\n", "M: 12 of 30\n", "sets: 1 of 2\n", "M: 24 of 30\n"]
