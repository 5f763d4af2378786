"""What the library survives: kills, damaged files, full disks, processes side by side, and bad inputs.

    python tests/faults.py --out results/faults.json

Every attempt has one result. held: the right content, or a refusal in one sentence. lost: work that was stored is
gone, or the work cannot be continued. silent: other content without a word. traceback: an error from inside the
library. Files that a fault leaves behind are counted as leftovers. `make faults` runs all of it, the tests a part.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import make_data, tiny_recipe

import gmlib as gm
from gmlib import checkpoint, cli, evaluation, exchange, files
from gmlib import networks as networks_of
from gmlib.analysis import matching, training
from gmlib.runs import readback, shipped, store
from gmlib.runs.provenance import environment
from gmlib.runtime import generator
from gmlib.speed.training import fit

SLOW = 20.0  # seconds after which a call counts as hanging
TRAINED = "networks trained"
PATTERNS = (
    "*.tmp",
    ".*.tmp",
    "kernel-*.json",
    ".*.batch",
    "training-*.safetensors",
)  # files that must not stay behind
Work = Callable[[Path], None]


@dataclass
class Row:
    """One line of the table."""

    kind: str
    what: str
    tried: int = 0
    held: int = 0
    lost: int = 0
    silent: int = 0
    traceback: int = 0
    leftovers: int = 0
    examples: list[str] = field(default_factory=list)  # of what did not hold

    def count(self, result: str, example: str = "") -> None:
        """Count one attempt: "held", "lost", "silent" or "traceback"."""
        self.tried += 1
        setattr(self, result, getattr(self, result) + 1)
        if result != "held" and len(self.examples) < 20:
            self.examples.append(f"{result}: {example}")

    def count_leftovers(self, folder: Path) -> None:
        """Count files that should not be there any more."""
        found = [path.name for pattern in PATTERNS for path in folder.rglob(pattern)]
        self.leftovers += len(set(found))
        if found:
            self.examples.append(f"leftover: {found[0]}")


# ---- work that is disturbed ------------------------------------------------------------------------------


def condense(folder: Path) -> None:
    """One set with four inner iterations, and a checkpoint after each."""
    data = make_data(dtype=torch.float32)
    recipe = tiny_recipe(what="multi", how="d1 + d2", where="adaptive", outer_loops=12, inner_loops=4, ipc=2)
    S = gm.condense(data, recipe, "cpu", folder / "run.safetensors", False, checkpoint_seconds=0, snapshots=[6])
    S.save(folder / "set.safetensors")


def condense_together(folder: Path) -> None:
    """Three sets with one checkpoint."""
    data = make_data(dtype=torch.float32)
    recipes = [tiny_recipe(what=what, outer_loops=25) for what in ("intra", "inter", "multi")]
    sets = gm.condense_together(data, recipes, "cpu", folder / "run.safetensors", False, checkpoint_seconds=0)
    for i, S in enumerate(sets):
        S.save(folder / f"set{i}.safetensors")


def one_run(folder: Path) -> None:
    """A set, its snapshots and the networks trained on them, in a folder of results."""
    small = {"width": 4, "depth": 2, "batch_real": 5, "outer_loops": 12, "snapshots": [6]}
    for method in ("DC", "random"):
        options = {**small} if method == "DC" else {"width": 4, "depth": 2}
        store.run(
            make_data(dtype=torch.float32), method, 1, budget="smoke", networks=1, results_dir=folder / "results",
            device="cpu", progress=False, **options,
        )  # fmt: skip


def trainings(folder: Path) -> None:
    """A coreset and networks on it, with a checkpoint after each epoch of their trainings."""
    checkpoint.TRAINING_SECONDS = 0.0  # of this process
    store.run(
        make_data(dtype=torch.float32), "herding", 1, budget="smoke", networks=2, results_dir=folder / "results",
        device="cpu", progress=False, width=4, depth=2,
    )  # fmt: skip


FIXED = ("--precision", "float32")  # "auto" measures the machine, and may choose another one after a kill


def cells(folder: Path) -> None:
    """`gmlib run` on a file of cells."""
    path = folder / "cells.csv"
    # In one piece: another process that does the same work may be reading it.
    text = b"dataset,ipc,method,seed,targets\ndigits,1,random,0,\ndigits,1,DC,0,\ndigits,1,M,0,convnet mlp\n"
    files.write_atomically(path, text)
    words = ["run", "--cells", path, "--budget", "smoke", "--networks", 1, "--results-dir", folder, "--quiet"]
    words += ["--device", "cpu", *FIXED]
    if status := cli.main([*map(str, words)]):
        raise SystemExit(status)


PAGE = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

```{{code-cell}} ipython3
:tags: [parameters]
time_budget = None
```

```{{code-cell}} ipython3
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from faults import one_run
one_run(Path({folder!r}))
```
"""


def batch(folder: Path) -> None:
    """A notebook as a batch job, in a process and with a kernel of its own."""
    page = folder / "page.md"
    page.write_text(PAGE.format(tests=str(Path(__file__).resolve().parent), folder=str(folder)))
    os.execv(sys.executable, [sys.executable, "-m", "gmreport.batch", str(page), str(folder / "out.ipynb")])


WORKS: dict[str, Work] = {
    "condense": condense,
    "condense_together": condense_together,
    "store.run": one_run,
    "trainings": trainings,
    "gmlib run": cells,
    "gmreport.batch": batch,
}
CHANGING = {"seconds", "peak_memory_bytes", "sha256", "set", "commit", "device_name"}


def content(folder: Path) -> dict[str, Any]:
    """What the files of a folder say, without times. Equal for equal results."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.startswith("set") and path.suffix == ".safetensors":
            S = gm.SyntheticSet.load(path)
            found[name] = hashlib.sha256(S.images.numpy().tobytes()).hexdigest()
        elif path.suffix == ".json" and path.name != "begun.json":
            found[name] = _without_times(json.loads(path.read_text()))
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in CHANGING}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


# ---- processes -------------------------------------------------------------------------------------------


def start(work: Work, folder: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Begin work in a process of its own. Returns its number. Its errors go to folder/errors."""
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        errors = os.open(folder / "errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        logging.disable()
        prepare()
        work(folder)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        text = f"{type(error).__name__}: {error}" if is_refusal(error) else traceback.format_exc()
        os.write(2, f"\n{text}".encode())
    finally:
        os._exit(status)


def end(pid: int) -> int:
    """Wait for a process. Returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(row: Row, work: Work, folder: Path, expected: dict[str, Any]) -> None:
    """Do the work again after a fault, to its end, and count the result. What was stored must not be done again."""
    done, reached, trained = finished_files(folder), checkpoints(folder), networks(folder)
    is_done = end(start(work, folder, partial(note_work, folder / "work"))) == 0
    lines = (folder / "work").read_text().splitlines() if (folder / "work").exists() else []
    (folder / "work").unlink(missing_ok=True)
    noted = [json.loads(line) for line in lines]
    begun = {what: at for what, at in noted if what != TRAINED}
    more = sum(number for what, number in noted if what == TRAINED)
    again = [name for name, at in done.items() if finished_files(folder).get(name) != at]
    again += [name for name, at in reached.items() if begun.get(name, at) != at]
    again += [f"{trained} networks"] if lines and trained + more != networks(folder) else []
    if is_done and again:
        row.count("lost", f"{row.what}: {again[0]} was stored and done again")
    else:
        settle(row, is_done, folder, expected)


def finished_files(folder: Path) -> dict[str, int]:
    """The time of the last change of the records and sets of all finished runs."""
    runs = [path.parent for path in folder.rglob("run.json")]
    return {
        str(run / name): (run / name).stat().st_mtime_ns for run in runs for name in ("run.json", "set.safetensors")
    }


def networks(folder: Path) -> int:
    """How many networks have a stored accuracy, those on snapshots too."""
    stored = [json.loads(path.read_text()) for path in folder.rglob("accuracy-*.json")]
    for path in folder.rglob("trace.json"):
        stored += json.loads(path.read_text())["trace"].values()
    return sum(len(one["accuracies"]) + len(one.get("failed", [])) for one in stored)


def checkpoints(folder: Path) -> dict[str, list]:
    """(k, t) of every run in the readable checkpoints of a folder, and the epochs of networks in training."""
    found = {}
    for path in folder.rglob("*.safetensors"):
        with suppress(ValueError):
            _, metadata = files.read_tensors(path, checkpoint.FORMAT, "")
            states = json.loads(metadata["states"])
            found[str(path)] = [[s["k"], s["inside"]["t"] if s["inside"] else 0] for s in states]
        with suppress(ValueError):
            _, metadata = files.read_tensors(path, checkpoint.TRAINING_FORMAT, "")
            found[str(path)] = int(metadata["epochs"])
    return found


def note_work(path: Path) -> None:
    """Let this process write down where every checkpoint lets its runs begin, and how many networks it trains.

    A program that it starts does not.
    """

    def note(what: str, value: Any) -> None:
        with open(path, "a") as file:
            file.write(json.dumps([what, value]) + "\n")

    def progress(self: checkpoint.Checkpoint, data: Any, real: Any = checkpoint.Checkpoint.progress) -> Any:
        runs = real(self, data)
        note(str(self.path), [[run.state.k, run.state.t] for run in runs])
        return runs

    def train(numbers: Sequence[int], *args: Any, real: Any = evaluation._train) -> Any:
        note(TRAINED, len(numbers))
        return real(numbers, *args)

    def restore(
        self: checkpoint.TrainingCheckpoint, *args: Any, real: Any = checkpoint.TrainingCheckpoint.restore
    ) -> int:
        epochs = real(self, *args)
        note(str(self.path), epochs)
        return epochs

    checkpoint.Checkpoint.progress = progress
    checkpoint.TrainingCheckpoint.restore = restore
    evaluation._train = train


def settle(row: Row, is_done: bool, folder: Path, expected: dict[str, Any]) -> None:
    """Count the result of work that has ended, with the exit status 0 if it is done."""
    if not is_done:
        errors = (folder / "errors").read_text().strip()
        row.count("traceback" if "Traceback" in errors else "lost", f"{row.what}: {errors[-300:]}")
    else:
        (folder / "errors").unlink()
        found = content(folder)
        row.count("held" if found == expected else "silent", f"{row.what}: {first_difference(found, expected)}")
        row.count_leftovers(folder)


def first_difference(found: Any, expected: Any, where: str = "") -> str:
    """Where two results differ first, and how."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *found]:
            if found.get(key) != expected.get(key):
                return first_difference(found.get(key), expected.get(key), f"{where}/{key}")
    return f"{where}: {str(found)[:100]} instead of {str(expected)[:100]}"


def expected_of(work: Work, folder: Path) -> tuple[dict[str, Any], float, int]:
    """Content, seconds and number of file writes of undisturbed work."""
    writes = folder.with_name("writes")

    def count_writes() -> None:
        def counted(*args: Any, real: Any = files.os.replace) -> None:
            with open(writes, "a") as file:
                file.write(".")
            real(*args)

        files.os.replace = counted

    started = time.monotonic()
    if end(start(work, folder, count_writes)) != 0:
        raise RuntimeError((folder / "errors").read_text())
    (folder / "errors").unlink()
    return content(folder), time.monotonic() - started, len(writes.read_text()) if writes.exists() else 0


def kills(rng: random.Random, tries: int, works: Sequence[str]) -> Iterator[Row]:
    """Kill at random moments, and inside writes: before the new content is complete, and just before and after it
    replaces the old."""
    for name in works:
        work = WORKS[name]
        with temporary() as at:
            expected, seconds, n_writes = expected_of(work, at / "whole")
            row = Row("kill", f"{name}, at random moments")
            for i in range(tries):
                pid = start(work, at / str(i))
                time.sleep(rng.uniform(0, seconds))
                os.kill(pid, signal.SIGKILL)
                end(pid)
                finish(row, work, at / str(i), expected)
            yield row
            if not n_writes:
                continue  # another program writes
            row = Row("kill", f"{name}, inside a write")
            for i in range(min(tries, MOST_IN_WRITES)):
                moment = rng.choice(("written", "before", "after"))
                folder = at / f"write{i}"
                end(start(work, folder, partial(die_in_write, rng.randrange(n_writes), moment)))
                finish(row, work, folder, expected)
            yield row


def die_in_write(nth: int, moment: str) -> None:
    """Let this process kill itself in its nth write."""
    calls = itertools.count()

    def dying(*args: Any, real: Any) -> None:
        mine = next(calls) == nth
        if moment == "after":
            real(*args)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        if moment != "after":
            real(*args)

    if moment == "written":
        files.os.fsync = partial(dying, real=os.fsync)
    else:
        files.os.replace = partial(dying, real=os.replace)


def full_disks(rng: random.Random, tries: int, works: Sequence[str]) -> Iterator[Row]:
    """Files cannot grow beyond a random size, as on a full disk."""
    for name in works:
        work = WORKS[name]
        row = Row("full disk", name)
        with temporary() as at:
            expected, _, _ = expected_of(work, at / "whole")
            largest = max(path.stat().st_size for path in (at / "whole").rglob("*") if path.is_file())
            for i in range(tries):
                folder = at / str(i)
                status = end(start(work, folder, partial(limit_files, rng.randrange(1, largest))))
                errors = (folder / "errors").read_text()
                if status != 0 and "Traceback" in errors:
                    row.count("traceback", f"{name}: {errors.strip()[-300:]}")
                    continue
                row.count_leftovers(folder)
                finish(row, work, folder, expected)
        yield row


def limit_files(size: int) -> None:
    """Let writes beyond this size fail with an OSError."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def side_by_side(rng: random.Random, tries: int, works: Sequence[str]) -> Iterator[Row]:
    """Three processes do the same work in one folder. Works with a folder of results share it."""
    for name in (name for name in works if name in ("store.run", "gmlib run")):
        work = WORKS[name]
        row = Row("side by side", f"{name}, three processes")
        with temporary() as at:
            expected, seconds, _ = expected_of(work, at / "whole")
            for i in range(tries):
                folder = at / str(i)
                pids = []
                for _ in range(3):
                    pids.append(start(work, folder))
                    time.sleep(rng.uniform(0, seconds / 3))
                statuses = [end(pid) for pid in pids]
                settle(row, not any(statuses), folder, expected)
        yield row


# ---- damaged files ---------------------------------------------------------------------------------------


def damaged_files(rng: random.Random, tries: int, works: Sequence[str]) -> Iterator[Row]:
    """Damage each stored file, and read everything."""
    yield from damaged(rng, tries, make_everything, read_everything, ("bit", "cut", "pipe", "swap"))


def damaged_exports(rng: random.Random, tries: int, works: Sequence[str]) -> Iterator[Row]:
    """The same for a set in the formats of others."""
    yield from damaged(rng, tries, make_exports, read_exports, ("bit", "cut", "pipe", "other"))


def damaged(
    rng: random.Random, tries: int, make: Work, read: Callable[[Path], Any], faults: Sequence[str]
) -> Iterator[Row]:
    """Flip one bit of a file, cut it off, or put something else in its place, and read all files."""
    with temporary() as at:
        good, folder = at / "good", at / "damaged"
        make(good)
        expected = read(good)
        strange = strange_files(at / "strange", folder / RAN) if "other" in faults else []
        for path in sorted(path for path in good.rglob("*") if path.is_file() and path.stat().st_size):
            name = path.relative_to(good)
            size = path.stat().st_size
            others = [other for other in good.rglob(path.name) if other != path]
            other_kinds = [*strange, *(other for other in good.rglob("*.*") if other.suffix != path.suffix)]
            times = {"pipe": 1, "swap": min(1, len(others)), "other": len(other_kinds)}
            for fault in faults:
                row = Row(DAMAGE[fault], str(name))
                for i in range(times.get(fault, tries)):
                    example = str(name)
                    shutil.rmtree(folder, ignore_errors=True)
                    shutil.copytree(good, folder)
                    blob = bytearray(path.read_bytes())
                    if fault == "bit":
                        # half of them in the small header of a safetensors file, or the directory at the end of a zip
                        place = rng.randrange(min(size, 600) if i % 2 else size)
                        place = size - 1 - place if path.suffix in (".npz", ".pt") else place
                        blob[place] ^= 1 << rng.randrange(8)
                    elif fault == "other":
                        blob = bytearray(other_kinds[i].read_bytes())
                        example = f"{name}, replaced by {other_kinds[i].name}"
                    else:
                        del blob[rng.randrange(size) :]
                    (folder / name).unlink()
                    if fault == "pipe":
                        os.mkfifo(folder / name)
                    else:
                        (folder / name).write_bytes(others[0].read_bytes() if fault == "swap" else blob)
                    judge(row, partial(read, folder), lambda found: found == expected, example)
                if row.tried:
                    yield row


DAMAGE = {
    "bit": "one bit flipped",
    "cut": "cut off",
    "pipe": "replaced by a pipe",
    "swap": "replaced by the same file of another run",
    "other": "replaced by something else",
}


def make_everything(folder: Path) -> None:
    """A folder with every kind of file that the library stores, and an unfinished run."""
    data = make_data(dtype=torch.float32)
    one_run(folder)
    small = {"width": 4, "depth": 2, "batch_real": 5}
    root = folder / "results"
    store.whole_data(data, budget="smoke", networks=2, results_dir=root, progress=False, width=4, depth=2, epochs=2)
    S = shipped.load(next(root.glob("*/ipc1/DC/set0")))
    store.cached_table(
        next(root.glob("*/ipc1/DC/set0")) / "reach.json", {"max_steps": 5, "set": S.fingerprint},
        lambda: gm.reach(S, eps=[0.5], n_starts=2, max_steps=5, width=4, depth=2, progress=False),
    )  # fmt: skip
    with suppress(gm.OutOfTime):
        store.run(
            data, "M", 1, budget="smoke", networks=2, results_dir=root, progress=False, device="cpu",
            deadline=time.monotonic() + 0.3, outer_loops=400, **small,
        )  # fmt: skip
    assert list(root.glob("*/ipc1/M/set0/checkpoint.safetensors")), "the run is finished: give it less time"
    checkpoint.TRAINING_SECONDS = 0.0
    _in_training(root, data, epochs=3)


def _in_training(root: Path, data: gm.Data, epochs: int) -> list[Any]:
    """A network in training: epochs from 0 to ``epochs`` are done if there is no file of it, and kept."""
    kept = checkpoint.TrainingCheckpoint(next(root.glob("*/ipc1/M/set0")) / "training-mlp-0.safetensors", {"seed": 0})
    network, rng = networks_of.build("mlp", data.shape, data.n_classes, generator=generator(0)), generator(1)
    fit(network, data.train_images, data.train_labels, epochs=epochs, rng=rng, batch=10, checkpoint=kept)
    return [p.tolist() for p in network.parameters()] + [rng.get_state().tolist(), kept.seconds()]


def read_everything(folder: Path) -> dict[str, Any]:
    """All that the report and a user read from a folder of results, and the run that goes on."""
    root = folder / "results"
    found: dict[str, Any] = {}
    for run in shipped.stored_runs(root):
        S = shipped.load(run["path"])
        found[str(run["path"].relative_to(root))] = (
            S.images.tolist(), S.classes, S.mean, S.std, S.recipe, S.record, S.history,
            S.evaluations, S.trace,
        )  # fmt: skip
    found["results"] = readback.load_results(root).to_dict("list")
    found["reach"] = readback.stored_descents(root).to_dict("list")
    found["whole"] = readback.stored_whole_data(root)
    data = make_data(dtype=torch.float32)
    options = {"budget": "smoke", "networks": 1, "results_dir": root, "device": "cpu", "progress": False}
    sizes = {"width": 4, "depth": 2}
    again = store.run(data, "DC", 1, snapshots=[6], outer_loops=12, batch_real=5, **sizes, **options)
    found["again"] = [again.evaluations, {k: (S.images.tolist(), e) for k, (S, e) in again.trace.items()}]
    unfinished = next(root.glob("*/ipc1/M/set0"))
    job = store.plan_run(data, "M", 1, budget="smoke", results_dir=root, outer_loops=400, batch_real=5, **sizes)
    if (unfinished / "run.json").exists():
        raise AssertionError("reading must not finish a run")
    state = store.Checkpoint(unfinished / "checkpoint.safetensors", data, [job.recipe]).progress(data)[0]
    checkpoint.TRAINING_SECONDS = math.inf
    found["training"] = _in_training(root, data, epochs=0)
    found["unfinished"] = [
        state.state.k, state.state.t, state.state.S.tolist(), state.history,
        store._begun(job),
    ]  # fmt: skip
    return json.loads(json.dumps(found, default=str))


RAN = "ran"  # the file that the code in a file writes


class CodeRan(BaseException):
    """Reading a file ran the code in it."""


class Code:
    """Unpickling it makes a file."""

    def __init__(self, ran: Path):
        self.ran = ran

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, (f"open({str(self.ran)!r}, 'w').close()",)


def make_exports(folder: Path) -> None:
    """A set in every format of others that the library reads."""
    at = folder / "exports"
    S = gm.coreset("random", make_data((4, 4), dtype=torch.float32), 1)
    with np.load(S.to_npz(at / "set.npz")) as found:
        np.savez_compressed(at / "compressed.npz", **found)
    S.to_folder(at / "png")
    (at / "png" / exchange.README).unlink()  # the library does not read it
    torch.save({"data": [[S.images, S.labels]], "accs_all_exps": {"ConvNet": [np.float64(0.9)]}}, at / "script.pt")
    torch.save(S.images, at / "images.pt")
    # Torch's older format has no checksum. Each change of a label is seen, since each class has one image.
    torch.save(S.labels, at / "labels.pt", _use_new_zipfile_serialization=False)


def read_exports(folder: Path) -> dict[str, Any]:
    """What all files of `make_exports` hold."""
    at, data = folder / "exports", make_data((4, 4), dtype=torch.float32)
    scale = {"mean": data.mean, "std": data.std}
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns about odd files before it refuses them
            sets = {
                "npz": gm.SyntheticSet.from_npz(at / "set.npz"),
                "compressed": gm.SyntheticSet.from_npz(at / "compressed.npz"),
                "png": gm.SyntheticSet.from_folder(at / "png"),
                "script": gm.SyntheticSet.from_pt(at / "script.pt", data, **scale),
                "two files": gm.SyntheticSet.from_pt(at / "images.pt", data, at / "labels.pt", **scale),
            }
    finally:
        if (folder / RAN).exists():
            raise CodeRan("the code in a file ran")
    return {
        name: (S.images.tolist(), S.labels.tolist(), S.classes, tuple(S.mean), tuple(S.std), S.recipe)
        for name, S in sets.items()
    }


def strange_files(folder: Path, ran: Path) -> list[Path]:
    """Files that fit nowhere. Some are good files of their kind, and some hold code that makes the file ``ran``."""
    folder.mkdir()
    code, x, y = Code(ran), torch.rand(2, 1, 8, 8), torch.arange(2)
    for name, content in {
        "empty": b"", "text": b"hello", "null": b"null", "list": b"[]", "deep": b"[" * 10**5,
        "pickle": pickle.dumps(code), "note": b'{"format": "gmlib-folder-1"}', "zip": b"PK\5\6" + bytes(18),
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    for name, content in {
        "code.pt": code, "pair and code.pt": {"data": [[x, y]], "accs_all_exps": code}, "key.pt": {"images": x},
        "empty.pt": {"data": []}, "numbers.pt": {"data": [[1, 2]]}, "nan.pt": (x / 0 * 0, y),
        "complex.pt": (x * 1j, y), "sparse.pt": (x.to_sparse(), y), "meta.pt": (x.to("meta"), y),
        "whole numbers.pt": (x.long(), y), "other shape.pt": (x[..., 1:], y), "three labels.pt": (x, torch.arange(3)),
    }.items():  # fmt: skip
        torch.save(content, folder / name)
    torch.save(code, folder / "old code.pt", _use_new_zipfile_serialization=False)
    good = {
        "images": x.numpy(),
        "labels": y.numpy(),
        "classes": ["a", "b"],
        "mean": [0.5],
        "std": [0.5],
        "recipe": "{}",
    }
    for name, changes in {
        "code.npz": {"classes": np.array([code, "b"])}, "images and code.npz": {"images": np.array([code])},
        "one array.npz": {"images": np.array(1.0)}, "nan.npz": {"mean": [np.nan]}, "zero.npz": {"std": [0.0]},
        "three labels.npz": {"labels": [0, 1, 2]}, "list.npz": {"recipe": "[]"},
        "none.npz": {"images": np.zeros((0, 1, 8, 8))},
    }.items():  # fmt: skip
        np.savez(folder / name, **{**good, **changes})
    np.save(folder / "images.npy", x.numpy())
    del good["images"]
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000, 1000)}"
    huge = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
    for name, images in {"huge.npz": huge, "text.npz": b"hello"}.items():
        np.savez(folder / name, **good)
        with zipfile.ZipFile(folder / name, "a") as archive:
            archive.writestr("images.npy", images)
    exchange.as_image(np.zeros((9, 8, 1), np.uint8)).save(folder / "other shape.png")
    exchange.as_image(np.zeros((8, 8, 1), np.uint8)).convert("F").save(folder / "floats.tiff")
    return sorted(folder.iterdir())


def judge(row: Row, call: Callable[[], Any], is_right: Callable[[Any], bool], example: str) -> bool:
    """Count one call: its result must be right, or it is refused in one sentence. Returns True if it raised."""
    try:
        with time_limit(SLOW):
            found = call()
    except BaseException as error:
        refused = is_refusal(error)
        row.count("held" if refused else "traceback", f"{example}: {type(error).__name__}: {str(error)[:200]}")
        return True
    row.count("held" if is_right(found) else "silent", example)
    return False


class Hangs(BaseException):
    """A call took too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Hangs` in the lines inside after this time."""

    def stop(*_: Any) -> None:
        raise Hangs(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


ROOT = Path(__file__).resolve().parents[1]
OWN = (Path(gm.__file__).resolve().parent, ROOT / "book" / "gmreport", ROOT / "workflow")  # our own code


def is_refusal(error: BaseException) -> bool:
    """True for an error that is meant for the caller: one sentence, of a kind that the docs name."""
    if not isinstance(error, (ValueError, OSError, ModuleNotFoundError, gm.OutOfTime, gm.Diverged)):
        return False
    message, last = str(error), error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    own = last and any(Path(last.tb_frame.f_code.co_filename).is_relative_to(folder) for folder in OWN)
    if not (own or isinstance(error, OSError)):
        return False  # raised by another library
    several = "\n" in message or re.search(r"\. [A-Z]", message)
    return len(message) > 15 and not several and not isinstance(error, UnicodeError)


# ---- bad inputs ------------------------------------------------------------------------------------------


SOON = object()  # stands for a deadline in some seconds
BAD: list[Any] = [
    None, True, -1, 0, 1.5, 10**9, 1e-300, float("nan"), float("inf"), "", "x", "a b/..", b"x", [], [1], ["x"], {},
    {"x": 1}, object(), np.nan, np.int64(3), np.array([1, 2]), torch.tensor([1.0, 2.0]), Path("nowhere"), print,
]  # fmt: skip


def calls(folder: Path) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any], Sequence[str]]]:
    """(name, function, good arguments, arguments to spoil) for the public functions. Good calls take milliseconds."""
    data = make_data(dtype=torch.float32)
    recipe = tiny_recipe()
    S = gm.condense(data, recipe, "cpu", progress=False)
    pixels, labels = torch.rand(6, 8, 8), [0, 1, 2, 0, 1, 2]
    fields = list(recipe.as_dict())
    protocol = (
        "epochs",
        "lr",
        "momentum",
        "weight_decay",
        "batch",
        "augment",
        "precision",
        "optimiser",
        "width",
        "depth",
    )
    soon = {"deadline": SOON, "progress": False}
    made = {name: getattr(data, name) for name in (
        "name", "classes", "mean", "std", "train_images", "train_labels", "test_images", "test_labels", "origin",
    )}  # fmt: skip
    yield "Data", gm.Data, made, tuple(made)
    yield "load_data", gm.load_data, {"name": "digits"}, ("name", "data_dir", "size", "seed")
    arrays = {
        "name": "a",
        "train_images": pixels,
        "train_labels": labels,
        "test_images": pixels,
        "test_labels": labels,
    }
    yield "Data.from_arrays", gm.Data.from_arrays, arrays, (*arrays, "classes", "mean", "std", "origin")
    items = list(zip(pixels, labels, strict=True))
    reading = {"train": items, "test": items, "progress": False}
    yield "Data.from_dataset", gm.Data.from_dataset, reading, (
        *reading, "name", "size", "classes", "layout", "test_share", "seed", "mean", "std", "origin",
    )  # fmt: skip
    scale = {"mean": 0.4, "std": 0.2}
    yield "Data.rescaled", data.rescaled, scale, tuple(scale)
    yield "Recipe", gm.Recipe, {}, fields
    for_method = {"method": "MD", "dataset": "digits", "ipc": 1, "budget": "smoke", "seed": 0}
    yield "Recipe.for_method", gm.Recipe.for_method, for_method, (*for_method, "outer_loops", "network", "unknown")
    condensing = {"data": data, "recipe": recipe, "device": "cpu", **soon}
    more = ("data", "recipe", "device", "checkpoint", "snapshots", "checkpoint_seconds", "deadline", "each")
    yield "condense", gm.condense, condensing, more
    together = {"data": data, "recipes": [recipe], "device": "cpu", **soon}
    more = (
        "data",
        "recipes",
        "device",
        "checkpoint",
        "snapshots",
        "checkpoint_seconds",
        "deadline",
        "finished",
        "each",
    )
    yield "condense_together", gm.condense_together, together, more
    estimating = {"data": data, "recipe": recipe, "device": "cpu", "n_networks": 1, "seconds": 0.01}
    yield "estimate", gm.estimate, estimating, (*estimating, "protocol")
    testing = {"S": S, "data": data, "n_networks": 1, "epochs": 1, "width": 4, "depth": 1, "device": "cpu", **soon}
    own = (
        "S",
        "data",
        "network",
        "n_networks",
        "seed",
        "protocol",
        "device",
        "known",
        "each",
        "deadline",
        "side_by_side",
    )
    yield "evaluate", gm.evaluate, testing, (*own, *protocol)
    judging = tuple(name for name in own if name not in ("known", "each", "side_by_side"))
    more = ("random_sets", "whole", "whole_epochs", *protocol)
    yield "judge", gm.judge, testing, (*judging, *more)
    several = tuple(name for name in judging if name != "network")
    yield (
        "cross_architectures",
        gm.cross_architectures,
        {**testing, "networks": ["mlp"]},
        (*several, "networks", *protocol),
    )
    choosing = {"method": "random", "data": data, "ipc": 1}
    yield (
        "coreset",
        gm.coreset,
        choosing,
        ("method", "data", "ipc", "seed", "space", "network", "width", "depth", "epochs"),
    )
    reaching = {"S": S, "eps": [0.5], "n_starts": 1, "max_steps": 2, "width": 4, "depth": 1, "progress": False}
    more = ("S", "eps", "n_starts", "seed", "max_steps", "width", "depth", "lr", "device", "data")
    yield "reach", gm.reach, reaching, more
    small = {"steps": 2, "every": 1, "width": 4, "depth": 1, "real_batch": 4, "device": "cpu", **soon}
    of_paths = (
        "data",
        "network",
        "width",
        "depth",
        "steps",
        "every",
        "lr",
        "seed",
        "real_batch",
        "device",
        "deadline",
    )
    yield "paths", training.paths, {"sets": {"M": S}, "data": data, **small}, ("sets", *of_paths, "start")
    yield "alignment", training.alignment, {"S": S, "data": data, **small}, ("S", *of_paths, "n_starts")
    measuring = {"data": data, "recipe": recipe, "device": "cpu", "deadline": SOON}
    yield "pulls", matching.pulls, measuring, ("data", "recipe", "S", "k", "device", "deadline")
    yield "angles", matching.angles, {"S": S, "k": 0, **measuring}, ("S", "data", "recipe", "k", "device", "deadline")
    yield "losses_along", matching.losses_along, measuring, ("data", "recipe", "device", "progress", "deadline")
    yield "load_condensed", gm.load_condensed, {"dataset": "MNIST", "ipc": 1}, (
        "dataset", "ipc", "method", "seed", "budget", "results_dir",
    )  # fmt: skip
    parts = {name: getattr(S, name) for name in ("images", "labels", "classes", "mean", "std", "recipe")}
    yield "SyntheticSet", gm.SyntheticSet, parts, tuple(parts)

    def and_back(write: Callable[..., Any], read: Callable[..., Any]) -> Callable[..., None]:
        """Write S, and read it again. It must be the same to 8 bits."""

        def call(path: Any, **options: Any) -> None:
            write(path, **options)
            if not torch.allclose(read(path).pixels(), S.pixels(), rtol=0, atol=0.51 / 255):
                raise AssertionError("another set came back")

        return call

    save, to_folder = and_back(S.save, gm.SyntheticSet.load), and_back(S.to_folder, gm.SyntheticSet.from_folder)
    yield "SyntheticSet.save", save, {"path": folder / "s.safetensors"}, ("path", "dtype")
    S.save(folder / "good.safetensors")
    yield "SyntheticSet.load", gm.SyntheticSet.load, {"path": folder / "good.safetensors"}, ("path",)
    yield "SyntheticSet.rescaled", S.rescaled, scale, tuple(scale)
    yield "SyntheticSet.show", S.show, {"path": folder / "s.png"}, ("path", "full_range")
    yield "SyntheticSet.to_folder", to_folder, {"path": folder / "new"}, ("path",)
    to_npz = and_back(S.to_npz, gm.SyntheticSet.from_npz)
    yield "SyntheticSet.to_npz", to_npz, {"path": folder / "s.npz"}, ("path",)
    own_choice = {"images": pixels, "labels": labels, "classes": None, **scale, "normalised": False}
    yield "SyntheticSet.from_arrays", gm.SyntheticSet.from_arrays, own_choice, (*own_choice, "data", "layout")
    S.to_folder(folder / "png")
    exported = {"path": folder / "png", "mean": None, "std": None, "classes": None, "size": None}
    yield "SyntheticSet.from_folder", gm.SyntheticSet.from_folder, exported, (*exported, "data")
    S.to_npz(folder / "good.npz")
    yield "SyntheticSet.from_npz", gm.SyntheticSet.from_npz, {"path": folder / "good.npz"}, ("path",)
    torch.save((S.images, S.labels), folder / "good.pt")
    of_others = {"path": folder / "good.pt", "data": data, **scale}
    yield "SyntheticSet.from_pt", gm.SyntheticSet.from_pt, of_others, (*of_others, "labels_path", "which", "classes")
    yield "register_network", gm.register_network, {"name": "own", "factory": gm.NETWORKS["mlp"]}, ("name", "factory")
    running = {
        "data": data, "method": "DC", "ipc": 1, "budget": "smoke", "networks": 1, "results_dir": folder / "runs",
        "progress": False, "device": "cpu", "width": 4, "depth": 1, "batch_real": 3, "outer_loops": 1,
        "deadline": 0.0,
    }  # fmt: skip
    more = (
        "data",
        "method",
        "ipc",
        "budget",
        "seed",
        "networks",
        "targets",
        "results_dir",
        "snapshots",
        "dtype",
        "what",
        "deadline",
        "progress",
    )
    yield "store.run", store.run, running, more
    sweeping = {**running, "methods": ["DC"]}
    del sweeping["method"], sweeping["outer_loops"], sweeping["batch_real"]
    yield "store.sweep", store.sweep, sweeping, (
        "methods", "ipc", "budget", "sets", "seed", "targets", "trace", "deadline",
    )  # fmt: skip
    yield "store.whole_data", store.whole_data, {
        "data": data, "budget": "smoke", "networks": 1, "results_dir": folder / "runs", "deadline": 0.0,
        "progress": False, "width": 4, "depth": 1,
    }, (
        "data", "network", "budget", "networks", "seed", "results_dir", "epochs", "lr", "deadline",
    )  # fmt: skip


def with_deadline(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments with a moment in time instead of SOON."""
    return {name: time.monotonic() + 5 if value is SOON else value for name, value in given.items()}


def is_finite(found: Any) -> bool:
    """False for data or a set with NaN or infinite images."""
    images = getattr(found, "train_images", getattr(found, "images", None))
    return not isinstance(images, torch.Tensor) or bool(images.isfinite().all())


def bad_inputs(rng: random.Random, tries: int, works: Sequence[str]) -> Iterator[Row]:
    """Every argument of the public functions gets values that do not fit, and some that do. Nothing may be written
    by a call that is refused."""
    known = dict(gm.NETWORKS)
    with temporary() as at:
        os.chdir(at)
        for name, function, good, spoiled in calls(at):
            row = Row("bad input", name)
            values = [(argument, value) for argument in spoiled for value in BAD]
            for argument, value in rng.sample(values, min(len(values), tries * len(spoiled))):
                before = set(at.rglob("*"))
                example = f"{name}({argument}={value!r:.60})"
                if isinstance(value, int) and value == 10**9 and argument in ("n_starts", "max_steps"):
                    continue  # a long time, as asked for
                given = with_deadline({**good, argument: value})
                raised = judge(row, partial(function, **given), is_finite, example)
                made = {path for path in at.rglob("*") if path.name != ".lock"} - before
                new = {path for path in made if path.is_file()}
                if raised and new:
                    row.leftovers += len(new)
                    row.examples.append(f"leftover: {example} wrote {min(new).name}")
                for path in sorted(made, reverse=True):  # the next call finds the folder as this one did
                    with suppress(OSError):
                        path.rmdir() if path.is_dir() else path.unlink()
            gm.NETWORKS.clear()  # some calls register one
            gm.NETWORKS.update(known)
            yield row


# ---- the table -------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[random.Random, int, Sequence[str]], Iterator[Row]]] = {
    "kills": kills,
    "disks": full_disks,
    "side": side_by_side,
    "files": damaged_files,
    "exports": damaged_exports,
    "inputs": bad_inputs,
}
# How often: (all, in the tests). For inputs: values for each argument.
MOST_IN_WRITES = 20  # kills
TRIES = {
    "kills": (34, 1),
    "disks": (10, 1),
    "side": (5, 1),
    "files": (30, 1),
    "exports": (100, 1),
    "inputs": (len(BAD), 2),
}


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder that is deleted afterwards, also if it is the working directory."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        finally:
            os.chdir(home)


def run(
    kinds: Sequence[str], quick: bool = False, works: Sequence[str] = tuple(WORKS), seed: int = 0
) -> Iterator[Row]:
    """The rows of the table, one after another."""
    torch.set_num_threads(1)
    for kind in kinds:
        yield from KINDS[kind](random.Random(f"{kind} {seed}"), TRIES[kind][quick], works)


def with_kept_rows(
    before: dict[str, Any], table: dict[str, Any], works: Collection[str] = tuple(WORKS)
) -> dict[str, Any]:
    """A table in which the rows of another are replaced by those that were made again, with the commits of both.

    Rows of a kind that was made again go, even if it has no such row any more. Those of works that were not done
    again stay.
    """
    made = {(row["kind"], row["what"]): row for row in table["rows"]}
    again, not_done = {kind for kind, _ in made}, set(WORKS) - set(works)
    kept = [
        row
        for row in before["rows"]
        if row["kind"] not in again or row["what"].partition(",")[0] in not_done or (row["kind"], row["what"]) in made
    ]
    rows = [made.pop((row["kind"], row["what"]), row) for row in kept]
    commits = dict.fromkeys([*str(before["commit"]).split(", "), str(table["commit"])])
    seconds = before["seconds"] + table["seconds"]
    return table | {"rows": [*rows, *made.values()], "commit": ", ".join(commits), "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--quick", action="store_true", help="few attempts, as in the tests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the table to this JSON file")
    parser.add_argument("--keep", action="store_true", help="replace only the rows that are made again")
    given = parser.parse_args(arguments)
    started, rows = time.monotonic(), []
    names = ("tried", "held", "lost", "silent", "traceback", "leftovers")
    print(f"{'':62}" + "".join(f"{name:>10}" for name in names))
    for row in run(given.kinds, given.quick, given.works, given.seed):
        rows.append(row)
        print(f"{row.kind + ': ' + row.what:62.62}" + "".join(f"{getattr(row, name):10}" for name in names))
        for example in row.examples:
            print(f"    {example}")
        sys.stdout.flush()
    total = {name: sum(getattr(row, name) for row in rows) for name in names}
    print(f"{'all':62}" + "".join(f"{total[name]:10}" for name in names))
    if given.out:
        plain = [{key: value for key, value in asdict(row).items() if key != "examples"} for row in rows]
        machine = environment(torch.device("cpu"))
        table = {
            "rows": plain,
            "commit": machine["commit"],
            "machine": machine,
            "seconds": time.monotonic() - started,
        }
        if given.keep:
            table = with_kept_rows(json.loads(given.out.read_text()), table, given.works)
        files.write_atomically(given.out, (json.dumps(table, indent=1) + "\n").encode())
    return int(total["held"] < total["tried"] or total["leftovers"] > 0)


if __name__ == "__main__":
    sys.exit(main())
