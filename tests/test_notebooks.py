"""A notebook as a batch job, killed half-way and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent


def start(folder, out):
    options = {
        "methods": "DC,M", "ipc": "1", "budget": "smoke", "sets": "1", "networks": "1", "device": "cpu",
        "results_dir": str(folder),
    }  # fmt: skip
    parameters = [word for pair in options.items() for word in ("-p", *pair)]
    command = [sys.executable, "-m", "gmreport.batch", "notebooks/what.md", str(out), *parameters]
    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def timeless(value):
    """JSON without what differs between two runs that are alike: seconds and memory."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "peak_memory_bytes")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def contents(folder):
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":  # the metadata hold seconds
            found[name] = {key: tensor.tobytes() for key, tensor in load_file(path).items()}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def test_a_job_killed_half_way_and_started_again_leaves_the_same_results(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with start(whole, tmp_path / "whole.ipynb") as job:
        assert job.wait(timeout=300) == 0, job.stderr.read()
    half = broken / "digits" / "ipc1" / "DC" / "set0" / "run.json"
    with start(broken, tmp_path / "broken.ipynb") as job:
        until = time.monotonic() + 300
        while not half.exists() and time.monotonic() < until:
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)  # the kernel sees that its parent is gone, and ends within a second
        assert job.wait() == -signal.SIGKILL
    assert half.exists() and not (tmp_path / "broken.ipynb").exists()
    time.sleep(3)
    assert not (broken / "digits" / "ipc1" / "M" / "set0" / "trace.json").exists(), "killed before the end"
    with start(broken, tmp_path / "broken.ipynb") as job:
        assert job.wait(timeout=300) == 0, job.stderr.read()
    a, b = contents(whole), contents(broken)
    assert sorted(a) == sorted(b)
    assert len(a) >= 8
    for name in a:
        assert a[name] == b[name], name


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "notebooks").glob("*.md")))
def test_every_notebook_has_the_parameters_of_all(name):
    text = (ROOT / "notebooks" / name).read_text()
    cell = text.split(":tags: [parameters]")[1].split("```")[0]
    namespace = {}
    exec(cell, namespace)
    asked = {
        "dataset",
        "ipc",
        "budget",
        "sets",
        "networks",
        "seed",
        "device",
        "data_dir",
        "results_dir",
        "time_budget",
    }
    assert asked <= set(namespace), sorted(asked - set(namespace))
    assert {"methods", "distances", "sources"} & set(namespace)
    assert (namespace["dataset"], namespace["budget"]) == ("digits", "smoke")
