"""Notebooks as batch jobs: parameters, bad input, failing cells, kills, and a log that can be read."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from conftest import make_data
from jupyter_client.kernelspec import get_kernel_spec

from gmlib import runtime
from gmlib.runs import store
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
    # The kernel and papermill say nothing about themselves, but for one warning on a busy machine, and what the
    # kernel sometimes says about its own sockets while it ends.
    said = log.err.partition("ERROR:tornado")[0]
    assert said.replace("IOStream.flush timed out\n", "") == ""
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


def start(out: str = "out.ipynb") -> subprocess.Popen:
    """Start a job; its connection file goes to the folder "runtime"."""
    return subprocess.Popen(
        [sys.executable, "-m", "gmreport.batch", "page.md", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JUPYTER_RUNTIME_DIR": "runtime", "OMP_NUM_THREADS": "1"},
    )


def kernel_of(job: subprocess.Popen) -> int:
    """Wait until the kernel says "started" and its process id."""
    return int(next(line for line in job.stdout if line.startswith("started")).split()[1])


def has_ended(process: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def wait_until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.05)


def test_a_signal_saves_the_checkpoint_and_leaves_nothing_else(tmp_path):
    """The run is short of the minute after which a checkpoint is written anyway."""
    code = """
import os
import gmlib as gm
from gmlib.runs import store
data = gm.load_data("digits")
print("started", os.getpid(), flush=True)
store.sweep(data, "DC", 1, budget="smoke", sets=1, outer_loops=10**6, device="cpu", results_dir="results")
print("the cell ended")
"""
    page(tmp_path, code + "\n```\n\n```{code-cell} ipython3\nprint('the next cell')")
    job = start()
    kernel = kernel_of(job)
    folder = tmp_path / "results" / "digits" / "ipc1" / "DC" / "set0"
    wait_until((folder / "begun.json").exists)
    time.sleep(1)
    job.send_signal(signal.SIGTERM)
    log, message = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM and "the cell ended" in log and "the next cell" not in log
    assert "stopped" in message and message.count("\n") == 1
    assert (folder / "checkpoint.safetensors").exists() and has_ended(kernel)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jupyter", "page.md", "results"]


def test_a_second_signal_ends_a_cell_that_does_not(tmp_path):
    code = """
import os, time
from tqdm import tqdm
print("started", os.getpid(), tqdm(range(3)).mininterval, flush=True)
time.sleep(600)
"""
    before = sorted([*tmp_path.rglob("*"), Path(page(tmp_path, code))])
    job = start()
    line = next(line for line in job.stdout if line.startswith("started")).split()
    assert float(line[2]) == 10  # between two states of a progress bar
    job.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert job.poll() is None, "it waits for the end of the cell"
    job.send_signal(signal.SIGTERM)
    _, message = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGINT and message.count("\n") == 1
    assert has_ended(int(line[1]))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_killed_job_leaves_no_kernel_and_its_folder_goes_at_the_next_start(tmp_path):
    page(tmp_path, "import os, time\nprint('started', os.getpid(), flush=True)\nif device != 'cuda': time.sleep(600)")
    job = start()
    kernel = kernel_of(job)
    assert batch.main(["page.md", "out.ipynb"]) == 2, "one job for one OUT"
    job.kill()
    job.communicate()
    wait_until(lambda: has_ended(kernel))
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"page.md"}
    assert left == {"kernel.json", "out.ipynb", ".lock"}, "of Jupyter, only the test's own kernel.json"
    assert [path.parent.name for path in tmp_path.rglob("kernel.json")] == ["python3"]
    assert batch.main(["page.md", "out.ipynb", "-p", "device", "cuda"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jupyter", "out.ipynb", "page.md"]


def test_time_that_was_used_up_has_its_own_status(tmp_path, capsys):
    code = """
from gmlib.runtime import OutOfTime
try:
    raise OutOfTime("something is left") if device == "cpu" else ValueError
except (OutOfTime, ValueError):
    print("not run")
"""
    assert batch.main([page(tmp_path, code), "out.ipynb"]) == 3
    log = capsys.readouterr()
    assert "run again" in log.err and log.err.count("\n") == 1 and "the time budget was used up, see" in log.out
    assert [output.text for output in outputs("out.ipynb")] == ["not run\n"]
    assert "gmreport" not in nbformat.read("out.ipynb", 4).metadata
    assert batch.main(["page.md", "out.ipynb", "-p", "device", "None"]) == 0


def test_only_finished_sets_count(monkeypatch, tmp_path):
    """The bar of a sweep, and whether something is left. A stored set needs no time."""
    monkeypatch.setattr(runtime.OutOfTime, "was_raised", False)
    monkeypatch.setattr(store, "progress_bar", bar := Bar())
    options = {"budget": "smoke", "sets": 2, "networks": 1, "device": "cpu", "results_dir": tmp_path}
    changes = {"outer_loops": 1, "width": 2, "depth": 1, "batch_real": 2, "inner_loops": 1, "zeta_theta": 1}
    data = make_data()
    assert len(store.sweep(data, "DC", 1, **options | {"sets": 1}, **changes)[0]) == 1
    assert (bar.n, runtime.OutOfTime.was_raised) == (1, False)
    runs, _ = store.sweep(data, "DC", 1, **options, **changes, deadline=time.monotonic() - 1)
    assert (len(runs), bar.n, runtime.OutOfTime.was_raised) == (1, 1, True)
    with pytest.raises(ValueError, match="sets"):
        store.sweep(data, "DC", 1, **options | {"sets": 10**9}, **changes)


class Bar:
    """A progress bar that counts, in the place of `progress_bar`."""

    def __call__(self, *words, **options):
        self.n = 0
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, n=1):
        self.n += n


BOMB = "[" + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]" for i in range(9)) + "]"


@pytest.mark.parametrize("value", [BOMB, "[" * 5000 + "]" * 5000, "9" * 20_000, "1e999", "nan", "[1, -inf]"])
def test_a_value_that_is_no_value_is_refused_at_once(value, tmp_path, capsys):
    assert batch.main([page(tmp_path), "out.ipynb", "-p", "ipc", value]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and len(message) < 200
    assert not Path("out.ipynb").exists()


def test_papermill_and_jupyter_book_take_this_python_too(tmp_path):
    page(tmp_path, "import sys\nprint(sys.prefix)")
    command = [Path(sys.executable).with_name("papermill"), "myst://page.md", "out.ipynb"]
    subprocess.run(command, capture_output=True, check=True)
    assert [output.text.strip() for output in outputs("out.ipynb")] == [sys.prefix]
    batch.use_this_python()
    assert Path(get_kernel_spec("python3").resource_dir).is_relative_to(sys.prefix)


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
