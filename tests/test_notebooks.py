"""The notebooks: their parameters, and one that is killed as a batch job and started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import papermill
import pytest
from jupytext.sync_contentsmanager import TextFileContentsManager
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent


# The cells of a notebook that compute and store results, without its tables and figures.
PAGE = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
---

```{code-cell} ipython3
:tags: [parameters]

methods = "M"
results_dir = None
```

```{code-cell} ipython3
import gmlib as gm
from gmlib.runs import store

store.sweep(
    gm.load_data("digits"), methods, 1, budget="smoke", sets=1, networks=1, device="cpu",
    outer_loops=20, trace={("M", 1): [0, 10, 20]}, results_dir=results_dir, together=False, width=8,
)
```
"""


def start(folder, name):
    (folder / "page.md").write_text(PAGE)
    command = [sys.executable, "-m", "gmreport.batch", "page.md", f"{name}.ipynb"]
    command += ["-p", "methods", "DC,M", "-p", "results_dir", name]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def timeless(value):
    """JSON without what differs between two equal runs: seconds and memory, and so the digest of the file."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "peak_memory_bytes", "sha256")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def contents(folder):
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":  # without the metadata, which contain seconds
            found[name] = {key: tensor.tobytes() for key, tensor in load_file(path).items()}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def test_a_job_that_is_killed_and_started_again_leaves_the_same_results(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with start(tmp_path, "whole") as job, start(tmp_path, "broken") as killed:
        first, last = (broken / "digits" / "ipc1" / method / "set0" for method in ("DC", "M"))
        end = time.monotonic() + 300
        while not (first / "run.json").exists() and time.monotonic() < end:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)  # the kernel sees it and ends within a second
        assert killed.wait() == -signal.SIGKILL
        assert job.wait(timeout=300) == 0, job.stdout.read()
    assert (first / "run.json").exists() and not (tmp_path / "broken.ipynb").exists()
    time.sleep(3)
    assert not (last / "trace.json").exists(), "killed before the end"
    with start(tmp_path, "broken") as job:
        assert job.wait(timeout=300) == 0, job.stdout.read()
    a, b = contents(whole), contents(broken)
    assert sorted(a) == sorted(b)
    assert len(a) >= 8
    for name in a:
        assert a[name] == b[name], name


def test_running_and_saving_a_page_in_jupyterlab_leaves_its_file_alone(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("*.ipynb", ".*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    manager = TextFileContentsManager(root_dir=str(tmp_path))
    before = {path: path.read_bytes() for path in (tmp_path / "notebooks").glob("*.md")}
    assert len(before) == 8
    for path in before:
        model = manager.get(f"notebooks/{path.name}", type="notebook")
        about = model["content"]["metadata"]
        about["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        about |= {"language_info": {"name": "python", "version": "3.11.7"}, "widgets": {"state": {}}}
        for cell in model["content"]["cells"]:
            cell["metadata"]["trusted"] = True
            if cell["cell_type"] == "code":
                cell["metadata"]["execution"] = {"iopub.execute_input": "2026-01-01"}
                cell |= {"execution_count": 1, "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}]}
        manager.save(model, f"notebooks/{path.name}")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.filterwarnings(r"ignore:The specified file \(myst")
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "notebooks").glob("*.md")))
def test_every_notebook_has_the_common_parameters(name):
    defaults = {
        parameter: about["default"]
        for parameter, about in papermill.inspect_notebook(f"myst://{ROOT / 'notebooks' / name}").items()
    }
    common = {
        "dataset", "ipc", "budget", "sets", "networks", "seed", "device", "data_dir", "size", "results_dir",
        "time_budget",
    }  # fmt: skip
    assert common - set(defaults) == set()
    assert {"methods", "distances", "sources"} & set(defaults)
    assert (defaults["dataset"], defaults["budget"]) == ('"digits"', '"smoke"')
