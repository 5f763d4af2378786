"""Small data and recipes that many tests share, and recorded steps without a GPU."""

import math
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # the first optimiser of a process imports it, for two seconds: forked processes find it here
from PIL import Image

from gmlib import Data, OutOfTime, Recipe, condense, load_data
from gmlib.runs import locks, store
from gmlib.speed import recording

pytest_plugins = ["browser"]  # headless Chromium for test_browser_*.py

# The tensors of the tests are tiny. More threads gain nothing and slow down tests that run in parallel.
torch.set_num_threads(1)

# Without a GPU the kernels of test_kernels.py are interpreted. Triton reads this when torch.compile first imports it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


# A shell starts background jobs with Ctrl-C ignored, and what they start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Start with the files whose tests wait longest for processes, so that no worker waits alone at the end."""
    longest = ("test_on_gpu.py", "test_notebooks.py", "test_batch.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(scope="session", autouse=True)
def no_memory_measured():
    """No run measures its memory: first it collects garbage, which takes longer here than a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "PeakMemory", lambda device: lambda: math.nan)
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Go back to one thread after a test that changes the number of threads."""
    yield
    torch.set_num_threads(1)


def make_data(counts=(12, 12, 12), shape=(1, 8, 8), n_test=9, seed=0, dtype=torch.float64) -> Data:
    """Random images. Classes differ in brightness and structure, with `counts` training images each."""
    rng = torch.Generator().manual_seed(seed)
    pattern = torch.rand(len(counts), *shape, generator=rng)

    def draw(labels):
        return (0.7 * pattern[labels] + 0.3 * torch.rand(len(labels), *shape, generator=rng)).clamp(0, 1)

    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    y_test = torch.arange(n_test) % len(counts)
    return Data.from_arrays("made-up", draw(y), y, draw(y_test), y_test).to(dtype=dtype)


def photos(folder, classes=("rose", "oak", "elm"), n=5, turned=True, seed=0):
    """JPEG photos of unlike sizes, every second one turned by its EXIF data."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(n):
            height, width = rng.integers(12, 30, 2)
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            exif = image.getexif()
            exif[274] = 6 if turned and i % 2 else 1
            image.save(folder / name / f"{i}.jpg", exif=exif)
    return folder


def tiny_recipe(**overrides) -> Recipe:
    """A recipe for `make_data` that takes milliseconds."""
    tiny = {"dataset": "made-up", "width": 4, "depth": 2, "outer_loops": 2, "batch_real": 5}
    return Recipe(**{**tiny, "how": "d1", "where": "fixed", **overrides})


def stopped_everywhere(data, recipe, device, checkpoint):
    """The set of a run that stops at its deadline after every step, and is started again, 12 times at most."""
    for _ in range(12):
        with suppress(OutOfTime):
            return condense(data, recipe, device, checkpoint, progress=False, deadline=-1.0)
    raise AssertionError("the run does not end")


def contents(folder):
    """The stored files. Lock files stay behind empty and do not count."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != locks.LOCK]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@contextmanager
def held(folder):
    """The lock of a folder, held by another thread as by another process. Yields a function that releases it."""
    is_held, release = threading.Event(), threading.Event()

    def hold():
        with locks.locked(folder):
            is_held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(60)
    try:
        yield release.set
    finally:
        release.set()
        thread.join()


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_data("digits")


# Work that is killed at random moments, and then done to the end. `kill_and_continue` puts the function `work` first.
KILLED = """
import os, random, signal, sys, time, torch
sys.path.insert(0, sys.argv[1])
from conftest import make_data
import gmlib as gm
{work}
torch.set_num_threads(1)

def start():
    pid = os.fork()
    if pid == 0:
        work(*sys.argv[2:])
        os._exit(0)
    return pid

moments = random.Random(0)
for _ in range({kills}):
    pid = start()
    time.sleep(moments.uniform(*{between}))
    os.kill(pid, signal.SIGKILL)
    print("killed" if os.WIFSIGNALED(os.waitpid(pid, 0)[1]) else "finished")
os.waitpid(start(), 0)
"""


def kill_and_continue(work: str, kills: int, between: tuple[float, float], *arguments) -> str:
    """Run a function ``work`` in processes that are killed after so many seconds, and once to the end.

    Returns "killed" or "finished" for each of the first processes, in lines.
    """
    code = KILLED.format(work=work, kills=kills, between=between)
    words = [sys.executable, "-c", code, str(Path(__file__).parent), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=300, env=environment).stdout


class Echo:
    """A stand-in for a CUDA graph: a replay calls the function on its input buffers and fills the first outputs."""

    made = 0

    def __init__(self, function, inputs, device):
        self.function = function
        self.inputs = [x.detach().clone() for x in inputs]
        self.outputs = None
        Echo.made += 1

    def __call__(self, *inputs):
        for buffer, x in zip(self.inputs, inputs, strict=True):
            buffer.copy_(x)
        new = self.function(*self.inputs)
        if self.outputs is None:
            self.outputs = new
        for buffer, value in zip(tensors(self.outputs), tensors(new), strict=True):
            buffer.data.copy_(value)
        return self.outputs


def tensors(outputs):
    """All tensors in nested lists and tuples."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for part in outputs or () for tensor in tensors(part)]


@pytest.fixture
def recorded(monkeypatch):
    """Steps are recorded and replayed as on CUDA, with `Echo` as the graph. A call overwrites earlier outputs."""
    monkeypatch.setattr(recording, "recordable", lambda device: True)
    monkeypatch.setattr(recording, "Graph", Echo)
    monkeypatch.setattr(Echo, "made", 0)
    return Echo
