"""How workflow/ grows with more workers: the smoke grid measured, and the whole paper added up from measured pieces.

    OMP_NUM_THREADS=1 python benchmarks/workflow.py --out runs/workflow.json
    OMP_NUM_THREADS=1 python benchmarks/workflow.py --only paper --out runs/workflow.json     # keeps the other part
    python benchmarks/workflow.py --only paper --device cuda --out runs/workflow-gpu.json     # a worker is a GPU

The grid, workflow/smoke.csv, runs as whole processes, each from an empty folder: `gmlib run` in one process, then
Snakemake with one and with two jobs at once (with --slurm also on a SLURM node of two CPUs). The ways take turns.
For the paper the pieces of its sets and networks are timed on random images in the sizes of its data sets.
workflow/plan.py shares its jobs among 1, 8 and 64 workers. Run nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import gmlib as gm
from gmlib import where
from gmlib.checks import check_number, require
from gmlib.condensation import as_set, with_precisions
from gmlib.evaluation import resolve_protocol
from gmlib.files import write_atomically
from gmlib.lines import fresh_network, initial
from gmlib.runs.cells import Cell
from gmlib.runs.estimates import Pieces, duration, now, seconds_per_outer_iteration
from gmlib.runs.layout import LEAST_NETWORKS
from gmlib.runs.provenance import environment
from gmlib.runs.tasks import set_of
from gmlib.runtime import device_of

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "tests")]

import plan  # noqa: E402

CELLS = ROOT / "workflow" / "smoke.csv"
WORKERS = (1, 8, 64)
PARTS = ("grid", "paper")

# ---- the grid, as whole processes ------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A way to run the grid: its name, how many jobs run at once, and the words after `snakemake`, if it is one."""

    name: str
    workers: int = 1
    words: tuple[str, ...] | None = None


ALONE = Way("gmlib run, one process")
LOCAL = [
    Way(f"Snakemake, {cores}", n, ("local", "--cores", str(n))) for n, cores in ((1, "one core"), (2, "two cores"))
]
SLURM = Way("Snakemake on SLURM, two CPUs", 2, ("slurm",))


def command(way: Way, cells: Path, folder: Path) -> list[str]:
    """What runs the grid in a folder."""
    results, budget = folder / "results", "smoke"
    if way.words is None:
        words = ["-m", "gmlib.cli", "run", "--cells", cells, "--budget", budget, "--results-dir", results]
        words += ["--threads", "1", "--quiet"]
    else:
        profile, *more = way.words
        words = ["-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", "--directory", folder]
        words += ["--profile", ROOT / "workflow" / "profiles" / profile, *more, "--config", f"cells={cells}"]
        words += [f"budget={budget}", f"results_dir={results}", f"folder={folder / 'jobs'}"]
    return [sys.executable, *map(str, words)]


def run_once(way: Way, cells: Path, folder: Path) -> float:
    """Run the grid in an empty folder. Returns the seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        command(way, cells, folder), capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{way.name} ended with status {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return seconds


def grid(
    ways: Sequence[Way], rounds: int, cells: Path = CELLS, once: Callable[[Way, Path, Path], float] = run_once
) -> dict[str, Any]:
    """Measure the grid in all ways, each of which begins every so many rounds. The first way is the one process."""
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for r in range(rounds):
        turn = r % len(ways)
        for way in [*ways[turn:], *ways[:turn]]:
            with tempfile.TemporaryDirectory(prefix="grid-") as folder:
                found[way.name].append(once(way, cells, Path(folder)))
            print(f"round {r + 1} of {rounds}: {way.name}: {found[way.name][-1]:.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [job for job in plan.jobs_of(*plan.asked(_config(cells, "smoke", folder)), {}) if job.left]
    of_one = median(found[ways[0].name])
    return {
        "cells": cells.name,
        "jobs": len(jobs),
        "ways": {
            way.name: {
                "workers": way.workers,
                "seconds": found[way.name],
                "median": median(found[way.name]),
                "per_job": (way.workers * median(found[way.name]) - of_one) / len(jobs) if way.words else None,
            }
            for way in ways
        },
    }


def _config(cells: Path | None, budget: str, results_dir: str) -> dict[str, Any]:
    return {"cells": cells, "budget": budget, "results_dir": results_dir}


# ---- the pieces of the paper's jobs ----------------------------------------------------------------------

SHAPES = {"MNIST": (1, 28, 28), "FashionMNIST": (1, 28, 28), "CIFAR10": (3, 32, 32)}
TESTS = {"MNIST": 10_000, "FashionMNIST": 10_000, "SVHN": 26_032, "CIFAR10": 10_000, "CIFAR100": 10_000}
# Whose times are those of another data set, and how many times as many classes it has.
LIKE = {"SVHN": ("CIFAR10", 1), "CIFAR100": ("CIFAR10", 10)}
SAME_SETS = {"FashionMNIST": "MNIST"}  # the same size; only its networks train for fewer epochs
NOT_TIMED = {
    "reach": "measurements of Section 5",
    "pulls": "measurements of Section 3.3",
    "whole": "data sets with networks trained on all images",
}
TESTED = 500  # images
SHORT = 10.0  # seconds: a first call that is shorter warms up


def pieces_of(cell: Cell, options: plan.tasks.Options) -> str:
    """The name of the pieces that the set of a cell is added up from."""
    _, recipe = set_of(cell, options)
    name, _ = LIKE.get(cell.dataset, (cell.dataset, 1))
    return f"{SAME_SETS.get(name, name)} {cell.ipc} {recipe.network}"


def networks_of(cell: Cell, options: plan.tasks.Options) -> dict[str, str]:
    """For each kind of network of a cell, the name of its pieces."""
    _, recipe = set_of(cell, options)
    name, _ = LIKE.get(cell.dataset, (cell.dataset, 1))
    return {network: f"{name} {cell.ipc} {network}" for network in cell.targets or (recipe.network,)}


def random_data(name: str, least: int) -> gm.Data:
    """Random images in the size of a data set, so many in each class."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(10).repeat_interleave(least)
    x = torch.rand(len(y) + TESTED, *SHAPES[name], generator=rng)
    return gm.Data.from_arrays(name, x[: len(y)], y, x[len(y) :], torch.arange(TESTED) % 10, layout="CHW")


def time_pieces(data: gm.Data, recipe: gm.Recipe) -> dict[str, float]:
    """Seconds of an update of S, a step of theta, a look at the losses, and of drawing a network."""
    pieces, device = Pieces(data, recipe), data.train_images.device
    started = time.perf_counter()
    found = pieces(0)
    if time.perf_counter() - started < SHORT:
        for k in range(pieces.warm_up):
            found = pieces(1 + k)
    started = now(device)
    fresh_network(data, recipe, 0)
    found["seconds_drawing"] = now(device) - started
    return {name: seconds for name, seconds in found.items() if seconds == seconds}  # no look: NaN


def time_network(data: gm.Data, recipe: gm.Recipe, network: str, least: float) -> dict[str, float]:
    """Seconds of an epoch and of a test image, for one network trained on a set; and how many epochs there are.

    A GPU trains several networks at once, as many as every set gets first. Each counts with its part.
    """
    S, device = as_set(initial(data, recipe), data, recipe, []), data.train_images.device
    n = LEAST_NETWORKS if device.type == "cuda" else 1
    epochs = resolve_protocol(S, data, network)["epochs"]

    def timed(some: int, tested: int = 10) -> float:
        few = replace(data, test_images=data.test_images[:tested], test_labels=data.test_labels[:tested])
        started = now(device)
        gm.evaluate(S, few, network, n, device=device, progress=False, epochs=some)
        return (now(device) - started) / n

    timed(1)  # warms up
    short = last = timed(1)
    many = 0
    while last - short < least and many < epochs:
        many = min(3 * many + 3, epochs)
        last = timed(1 + many)
    tests = max(0.0, timed(1, TESTED) - short) / (TESTED - 10)
    return {"epochs": epochs, "epoch": max(0.0, last - short) / many, "test_image": tests}


def measured(
    cells: Iterable[Cell], options: plan.tasks.Options, least: float = 1.0, device: str = "cpu", **fields: Any
) -> dict[str, Any]:
    """Time the pieces that these cells need, epochs for ``least`` seconds. ``fields`` change the recipes."""
    found: dict[str, Any] = {"pieces": {}, "networks": {}, "precision": {}}
    cells = [replace(cell, seed=0) for cell in cells if cell.measure == "networks"]
    cells.sort(key=lambda cell: cell.method != "MDO")  # its pieces are those of the others, and looks
    made: dict[str, gm.Data] = {}
    for cell in cells:
        chosen = cell.method.partition("@")[0] in gm.CORESETS
        wanted = {} if chosen else {"pieces": pieces_of(cell, options)}
        for network, name in [*wanted.items(), *networks_of(cell, options).items()]:
            kind = "pieces" if network == "pieces" else "networks"
            if name in found[kind]:
                continue
            dataset = name.split()[0]
            source = "convnet" if chosen else set_of(cell, options)[1].network
            recipe = gm.Recipe.for_method(
                "MD" if chosen else cell.method.partition("@")[0], dataset, cell.ipc, options.budget,
                **{"precision": "auto", "network": source, **fields},
            )  # fmt: skip
            if dataset not in made:
                made[dataset] = random_data(dataset, recipe.batch_real).to(torch.device(device))
            data = made[dataset]
            if kind == "pieces":
                (recipe,) = with_precisions(data, [recipe])
                found[kind][name] = time_pieces(data, recipe)
                found["precision"][name] = recipe.precision
            else:
                found[kind][name] = time_network(data, replace(recipe, network="convnet"), network, least)
            said = ", ".join(f"{what} {value:.3g}" for what, value in found[kind][name].items())
            print(f"{name}, {kind}: {said}", flush=True)
    return found


# ---- the paper, added up ---------------------------------------------------------------------------------


def times_of(
    cells: Iterable[Cell], options: plan.tasks.Options, found: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Seconds for one set and one network of each kind, as `plan.jobs_of` takes them, from `measured`."""
    times: dict[str, dict[str, float]] = {}
    for cell in cells:
        if cell.measure != "networks":
            continue
        _, classes = LIKE.get(cell.dataset, ("", 1))
        of = times.setdefault(plan.kind_of(cell), {})
        if cell.method.partition("@")[0] not in gm.CORESETS:
            _, recipe = set_of(cell, options)
            pieces = {name: classes * s for name, s in found["pieces"][pieces_of(cell, options)].items()}
            each = seconds_per_outer_iteration(recipe, pieces) + pieces["seconds_drawing"] / classes
            of["set"] = recipe.outer_loops * each
        for network, name in networks_of(cell, options).items():
            p = found["networks"][name]
            of[f"network {network}"] = classes * p["epochs"] * p["epoch"] + TESTS[cell.dataset] * p["test_image"]
    return times


def shared_part(file: Mapping[str, Any], precision: str) -> float:
    """The part of a set's time that sets made together spend once, from what benchmarks/together.py measured."""
    n = len(file["methods"])
    together, apart = (file["median"][f"{way}, {precision}"] for way in ("together", "apart"))
    return min(1.0, max(0.0, (1 - together / apart) * n / (n - 1)))


def hours(cells: Sequence[Cell], options: plan.tasks.Options, found: Mapping[str, Any], shared: float) -> dict:
    """The jobs of the cells, shared among workers: all of them, and those with each number of images per class.

    "at_most_hours" are those of sets that are updated until overfitting, since nobody knows their steps beforehand.
    """
    jobs = plan.jobs_of(cells, options, times_of(cells, options, found), shared)
    size = {job.name: int(job.words[job.words.index("--ipc") + 1]) if "--ipc" in job.words else None for job in jobs}
    sizes = [n for n in dict.fromkeys(size.values()) if n is not None]
    groups = {"all": jobs} | {str(n): [job for job in jobs if size[job.name] == n] for n in sorted(sizes)}
    bound = {method for method, choice in gm.METHODS.items() if choice["where"] in where.STOP}
    made: dict[str, Any] = {}
    for name, some in groups.items():
        longest = max(some, key=lambda job: job.seconds)
        at_most = sum(job.seconds for job in some if job.kind == "sets" and bound & set(job.words))
        left: Counter[str] = sum((Counter(job.left) for job in some), Counter())
        made[name] = {
            "jobs": sum(bool(job.left) for job in some),
            "sets": left["set"],
            "networks": left["network"],
            "worker_hours": sum(job.seconds for job in some) / 3600,
            "hours": {str(n): plan.wall_time(some, n) / 3600 for n in WORKERS},
            "at_most_hours": at_most / 3600,
            "longest_job": longest.name,
            "longest_job_hours": longest.seconds / 3600,
            "shortest_possible_hours": plan.wall_time(some, max(1, len(some))) / 3600,
        }
    not_timed = {"sets chosen by herding": sum(cell.method == "herding" for cell in cells)}
    for measure, what in NOT_TIMED.items():
        not_timed[what] = sum(cell.measure == measure for cell in cells)
    return {"groups": made, "not_timed": {what: n for what, n in not_timed.items() if n}}


def figures(cells: Iterable[Cell], options: plan.tasks.Options) -> dict[str, int]:
    """How many of the paper's numbers there are, and how many the cells make."""
    from gmreport.paper import TABLES, published

    made = set()
    for cell in cells:
        if cell.measure == "whole":
            made.add((cell.dataset, 0, "whole", "convnet"))
        elif cell.measure == "networks":
            made |= {(cell.dataset, cell.ipc, cell.method, network) for network in networks_of(cell, options)}
    rows = [row for table in TABLES for row in published(table).fillna({"ipc": 0}).itertuples()]
    of_cells = sum((row.dataset, row.ipc, row.method, row.network) in made for row in rows)
    return {"figures": len(rows), "figures_of_cells": of_cells}


def paper(together: Path | None, quick: bool, device: str = "cpu") -> dict[str, Any]:
    """Time the pieces, and add up the paper. Without a file of benchmarks/together.py each set is made alone."""
    with tempfile.TemporaryDirectory() as folder:  # nothing is stored there, so all is left
        cells, options = plan.asked(_config(None, "paper", folder))
        if quick:
            cells = [cell for cell in cells if cell.ipc == 1 and cell.dataset == "MNIST" and cell.table == "Table 3"]
        sizes: dict[str, Any] = {"least": 0.05, "width": 8, "batch_real": 8} if quick else {}
        found = measured(cells, options, device=device, **sizes)
        most = Counter(found["precision"].values()).most_common(1)[0][0]
        precision = "bf16" if "bf16" in most else "float32"
        shared = shared_part(json.loads(together.read_text()), precision) if together else 0.0
        return {
            **figures(cells, options),
            "outer_loops": gm.Recipe.outer_loops,
            "networks_each": gm.BUDGETS["paper"].networks,
            **hours(cells, options, found, shared),
            "shared": shared,
            "shared_from": together.name if together else None,
            "measured": found,
        }


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/workflow.json"), help="default: runs/workflow.json")
    parser.add_argument("--only", choices=PARTS, help="one part; the other stays as it is in the file")
    parser.add_argument("--rounds", type=int, default=2, help="of the grid; default: 2")
    parser.add_argument("--slurm", action="store_true", help="the grid on a SLURM node too, which needs slurm-wlm")
    parser.add_argument(
        "--together",
        type=Path,
        help="a file of benchmarks/together.py; default on a CPU: the stored one",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for the part `paper`; default: cpu")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to check that it runs")
    given = parser.parse_args(arguments)
    parts = [given.only] if given.only else list(PARTS)
    if given.together is None and given.device == "cpu":
        given.together = ROOT / "results" / "benchmarks" / "together" / "intel-r-xeon-r-processor.json"
    try:
        made_on = environment(device_of(given.device))
        check_number("rounds", given.rounds, least=1, whole=True)
        if given.device != "cpu" and "grid" in parts:
            raise ValueError("the grid is too small for a GPU: add --only paper")
        if "paper" in parts and given.together and not given.together.is_file():
            raise ValueError(f"there is no file {given.together}: name one of benchmarks/together.py with --together")
        if given.device == "cpu" and made_on["threads"] != 1:
            raise ValueError(f"a worker has one thread, and here are {made_on['threads']}: set OMP_NUM_THREADS=1")
        content: dict[str, Any] = {}
        if given.only and given.out.is_file():
            content = json.loads(given.out.read_text())
            for name, value in made_on.items():
                if content.get(name) != value:
                    raise ValueError(
                        f"{given.out} was measured with {name}={content.get(name)!r}: give another --out"
                    )
        if "grid" in parts:
            require("snakemake", "workflow")
            if given.slurm:
                import slurm

                if slurm.why_not():
                    raise ValueError(f"there is no SLURM here: {slurm.why_not()}")
    except (ValueError, ModuleNotFoundError) as error:
        print(f"workflow: {error}", file=sys.stderr)
        return 2
    for part in parts:
        content[part] = measure_grid(given) if part == "grid" else paper(given.together, given.quick, given.device)
        content |= made_on
        write_atomically(given.out, (json.dumps(content, indent=1) + "\n").encode())
    for name, way in content.get("grid", {}).get("ways", {}).items():
        per_job = "" if way["per_job"] is None else f", {way['per_job']:.1f} worker-seconds more for each job"
        print(f"{name}: {way['median']:.1f} s{per_job}")
    for name, group in content.get("paper", {}).get("groups", {}).items():
        spread = ", ".join(f"{n} workers {duration(3600 * h)}" for n, h in group["hours"].items())
        print(f"paper, {'all' if name == 'all' else f'IPC {name}'}: {group['jobs']} jobs; {spread}")
    return 0


def measure_grid(given: argparse.Namespace) -> dict[str, Any]:
    """The grid in all ways that were asked for."""
    ways = [ALONE, *LOCAL]
    with tempfile.TemporaryDirectory() as folder:
        cells = CELLS
        if given.quick:
            cells = Path(folder) / "cells.csv"
            cells.write_text("dataset,ipc,method,seed\ndigits,1,random,0 1\n")
        if not given.slurm:
            return grid(ways, given.rounds, cells)
        import slurm

        with slurm.cluster(Path(folder) / "slurm"):
            return grid([*ways, SLURM], given.rounds, cells)


if __name__ == "__main__":
    sys.exit(main())
