"""Work through the paper's tables, in order of what tells most, and leave the results where the report reads them:

    python workflow/campaign.py --budget lite --datasets MNIST FashionMNIST --ipc 1 10 --time-budget 3600

What is stored is not done again, so the same command goes on after a stop, a kill or the end of the time budget. Runs by the
paper's protocol go to results/, those of another budget to results/<budget>/, and what --change makes, to see what one field
of a recipe does, to results/probes/<change>/. Needs no notebook.

Exit status: 0 done, or the time budget was used up; 1 something could not be done, or was left out, as the log says; 2 bad
input, nothing was run; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from gmreport import paper

from gmlib import BUDGETS, CORESETS, Data, Diverged, OutOfTime, Recipe, SyntheticSet, load_data, reach
from gmlib.analysis.matching import pulls
from gmlib.checks import check_number, choose
from gmlib.evaluation import settle
from gmlib.files import write_atomically
from gmlib.maxmin import noise_set
from gmlib.recipe import Budget
from gmlib.runs import layout, overview, readback, shipped, store
from gmlib.runtime import deadline_in, deadline_passed, device_of

# Section 5: where a descent ends, as in notebooks/hypothesis.md, and from how many starts for each set.
DESCENT = {"eps": [0.5, 0.2, 0.1], "lr": 0.1, "max_steps": 500}
STARTS, FEW_STARTS = 16, 4
# Networks trained on all training images: fewer epochs than in phase 2, which has a handful of images in each.
WHOLE, SHORT_WHOLE = {"networks": 5, "epochs": 30}, {"networks": 2, "epochs": 10}

DTYPE = torch.float16  # of the stored images: half the size, and networks are trained on what was stored

log = logging.getLogger("campaign")
Kind = (
    tuple  # work that takes about as long wherever it is of one kind, so that what was measured tells of what is left
)
Spent = dict[Kind, tuple[float, int]]  # kind -> seconds, and for how much of it


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    budget: str
    results_dir: Path
    data_dir: Path | None = None
    device: torch.device | None = None
    progress: bool = False
    tables: tuple[str, ...] = ()  # those alone; (): all
    methods: tuple[str, ...] = ()
    share: tuple[int, int] = (0, 1)  # see `work`
    changes: Mapping[str, Any] = field(default_factory=dict)  # recipe fields that are not the budget's

    @property
    def stages(self) -> Iterator[Stage]:
        """STAGES, or what is asked for of them; with changes those of condensed sets."""
        for stage in STAGES:
            methods = tuple(m for m in stage.methods if not self.methods or m in self.methods)
            if self.changes:
                methods = tuple(m for m in methods if m not in CORESETS) if stage.piece is made else ()
            if methods and (not self.tables or stage.name in self.tables):
                yield replace(stage, methods=methods)

    @property
    def folder(self) -> Path:
        """Where the results of this budget go."""
        at = shipped.probe_folder(self.changes, self.results_dir) if self.changes else self.results_dir
        return shipped.folder(self.budget, at)


@dataclass(frozen=True)
class Piece:
    """Work that is told of in one line, and stored as it is done: a set, networks on all training images, or descents."""

    key: tuple  # two pieces of one key are the same work
    name: str
    left: Callable[[], Counter[Kind]]  # how much of each kind is not stored yet
    do: Callable[[float | None], tuple[str, Spent]]  # do it, or read it back, until a deadline


def made(asked: Asked, data: Data, method: str, ipc: int, seed: int, targets: Sequence[str] | None) -> Piece:
    """One set, condensed or selected, and the networks trained on it.

    Of a budget that ends sooner than the paper's, the first set of a method is kept and evaluated half-way too, which tells what
    going on would bring.
    """
    preset, _, source = method.partition("@")
    options = {"budget": asked.budget, "seed": seed, "targets": targets, "results_dir": asked.folder, "dtype": DTYPE}
    options |= asked.changes | ({"network": source} if source else {})
    job = store.plan_run(data, preset, ipc, **options)
    if asked.changes and not job.budget.endswith(store.CHANGED):
        raise ValueError(
            f"{data.name}, {method}: {shipped.spell_changes(asked.changes)} is what the budget {asked.budget} has anyway"
        )
    K = job.recipe.outer_loops
    half = K // 2 or None if seed == 0 and Recipe.outer_loops > K and job.coreset is None else None
    if half is not None:
        options["snapshots"] = (half,)
    make = ("set", data.name, ipc, method)
    train = {network: ("networks", data.name, ipc, network) for network in job.targets}
    own = train.get(job.recipe.network, train[job.targets[0]])

    def left() -> Counter[Kind]:
        stored, there = shipped.evaluations(job.folder), (job.folder / "run.json").is_file()
        todo = Counter({kind: job.n_networks - (stored[n].n if n in stored else 0) for n, kind in train.items()})
        todo[make] = not there
        if half is not None and (
            not there or (job.folder / "snapshots.safetensors").is_file()
        ):  # made when none was kept: none
            trace = layout.read_trace(job.folder / "trace.json")
            todo[own] += job.n_networks - (trace[half].n if half in trace else 0)
        return +todo  # what is above zero

    def do(deadline: float | None) -> tuple[str, Spent]:
        run = store.run(data, preset, ipc, device=asked.device, progress=asked.progress, deadline=deadline, **options)
        told = [f"{network} {e}" if len(train) > 1 else str(e) for network, e in run.evaluations.items()]
        told += [f"after {k} of {K} outer iterations {e}" for k, (_, e) in run.trace.items()]
        spent = {train[network]: (e.seconds, e.n) for network, e in run.evaluations.items()}
        return ", ".join(told), spent | {make: (run.record["seconds"], 1)}

    return Piece((data.name, ipc, method, seed, job.targets), f"{data.name}, {method}, set {seed}", left, do)


def in_one_file(path: Path, key: tuple, kind: Kind, name: str, do: Callable[[float | None], str]) -> Piece:
    """Work that leaves one file, whole or not at all. do: it, or reads it back, until a deadline, and tells of it."""

    def left() -> Counter[Kind]:
        return Counter() if path.is_file() else Counter({kind: 1})

    def timed(deadline: float | None) -> tuple[str, Spent]:
        begun, there = time.monotonic(), path.is_file()
        told = do(deadline)
        return told, {} if there else {kind: (time.monotonic() - begun, 1)}

    return Piece(key, name, left, timed)


def descended(asked: Asked, data: Data, method: str, ipc: int, seed: int, targets: Sequence[str] | None) -> Piece:
    """Section 5: how far from its start training on a set comes to rest; method "noise" is the control."""
    recipe = Recipe.for_method("M", data.name, ipc, asked.budget)
    starts = STARTS if asked.budget == "paper" else FEW_STARTS
    settings = {**DESCENT, "n_starts": starts, "width": recipe.width, "depth": recipe.depth}
    folder = layout.run_folder(asked.folder, data.name, ipc, method, seed)
    path, kind = folder / "reach.json", ("descents", data.name, ipc)

    def do(deadline: float | None) -> str:
        if method != "noise" and not (folder / "set.safetensors").is_file():
            made(asked, data, method, ipc, seed, targets).do(deadline)
        S = noise_set(data, ipc, seed) if method == "noise" else SyntheticSet.load(folder / "set.safetensors")
        table = store.cached_table(
            path, {**settings, "data": data.fingerprint},
            lambda: reach(S, data=data, device=asked.device, progress=asked.progress, **settings),  # whole, also if that is late
            deadline=deadline, device=asked.device,
        )  # fmt: skip
        least = table[table["eps"] == min(DESCENT["eps"])]
        met = least["reached"].sum()
        return f"{met} of {len(least)} starts are trapped" + (
            f", the nearest at {least['distance'].min():.2f}" if met else ""
        )

    return in_one_file(path, (*kind, method, seed), kind, f"{data.name}, {method}, set {seed}", do)


def pulled(asked: Asked, data: Data, method: str, ipc: int, seed: int, targets: Sequence[str] | None) -> Piece:
    """Section 3.3: how hard each part of the matching loss pulls at S along one outer iteration, as in notebooks/what.md."""
    recipe = Recipe.for_method(method, data.name, ipc, asked.budget, seed)
    path = layout.run_folder(asked.folder, data.name, ipc, method, seed) / "pulls.json"
    kind = ("pulls", data.name, ipc, method)

    def do(deadline: float | None) -> str:
        table = store.cached_table(
            path, {"recipe": recipe.as_dict(), "data": data.fingerprint},
            lambda: pulls(data, recipe, device=asked.device), deadline=deadline, device=asked.device,
        )  # fmt: skip
        most = table.loc[table["step"].idxmax()]
        return f"{most['what']} {most['how']} moves S most, by {most['step']:.1%} of its norm in one step at t = {most['t']}"

    return in_one_file(path, (*kind, seed), kind, f"{data.name}, {method}, set {seed}", do)


def whole(asked: Asked, data: Data, *_: object) -> Piece:
    """ConvNets trained on all training images: no method, and one piece for all sets."""
    protocol = WHOLE if asked.budget == "paper" else SHORT_WHOLE
    folder = layout.whole_data_folder(asked.folder, data.name)
    kind = ("networks", data.name)

    def left() -> Counter[Kind]:
        stored = shipped.evaluations(folder)
        return +Counter({kind: protocol["networks"] - (stored["convnet"].n if "convnet" in stored else 0)})

    def do(deadline: float | None) -> tuple[str, Spent]:
        e = store.whole_data(
            data, budget=asked.budget, results_dir=asked.folder, device=asked.device, progress=asked.progress,
            deadline=deadline, **protocol,
        )  # fmt: skip
        return str(e), {kind: (e.seconds, e.n)}

    return Piece(kind, f"{data.name}, all training images", left, do)


# ---- the tables ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Part of a table: each method on each data set, all methods with one seed before the next seed."""

    name: str
    ipc: int | None  # None: all training images
    methods: tuple[str, ...]
    targets: tuple[str, ...] | None = None  # networks trained on each set; None: the one it was made with
    only: str | None = None  # the paper's one data set for it; where that is not asked for, one that is stands in
    piece: Callable[..., Piece] = made

    @property
    def title(self) -> str:
        return self.name if self.ipc is None else f"{self.name}, IPC {self.ipc}"

    def cells(self, found: Sequence[Data], sets: int, begun: Collection[str] = ()) -> Iterator[tuple]:
        """(data, method, ipc, seed, targets) in order, for `found`, the data sets at hand.

        begun: those that stand in for `only` already. No other is begun beside them.
        """
        if self.only:
            instead = [data for data in found if data.name in begun] if begun else found[:1]
            found = [data for data in found if data.name == self.only] or instead
        for data in found:
            for seed in range(sets):
                for method in self.methods:
                    yield data, method, self.ipc, seed, self.targets


# What an earlier stage makes is not made again. Herding trains a network on all training images: it comes after what it is
# compared with.
STAGES = (
    Stage("Table 3", 1, ("random", "DC", "M", "MD")),
    Stage("Table 3", 1, ("herding",)),
    Stage("Table 1", 1, ("DC", "Inter", "Interleaved", "M")),
    Stage(
        "Table 2", 1, ("M", "multi,d2,fixed", "multi,d3,fixed", "multi,100*d4,fixed", "MD", "multi,d1+d3,fixed",
                       "multi,d1+100*d4,fixed"), only="SVHN",
    ),
    Stage("Section 5", 1, ("noise", "random", "DC", "Inter", "M", "MD"), piece=descended),
    Stage(
        "Table 4", 1, ("random", "MD", "MD@mlp", "MD@lenet", "MD@alexnet", "MD@vgg11bn", "MD@resnet18bn"),
        targets=("mlp", "convnet", "lenet", "alexnet", "vgg11", "resnet18"), only="MNIST",
    ),
    Stage("Table 3", 10, ("random", "DC", "M", "MD", "MDO", "MDA")),
    Stage("Section 3.3", 10, ("MD", "MDA"), piece=pulled),
    Stage("Table 3", 10, ("herding",)),
    Stage("Table 1", 10, ("DC", "Inter", "Interleaved", "M")),
    Stage("Whole data", None, ("whole",), piece=whole),
    Stage("Table 3", 50, ("random", "DC", "M", "MD", "MDO", "MDA")),
    Stage("Table 3", 50, ("herding",)),
)  # fmt: skip


# ---- one after the other ---------------------------------------------------------------------------------


class Clock:
    """What is left, judged by what was measured, on whatever day it was."""

    def __init__(self) -> None:
        self.spent: dict[Kind, tuple[float, int]] = {}

    def note(self, spent: Spent) -> None:
        for kind, (seconds, amount) in spent.items():
            before = self.spent.get(kind, (0.0, 0))
            self.spent[kind] = before[0] + seconds, before[1] + amount

    def rate(self, kind: Kind) -> float:
        """Seconds for one of a kind. A set by a method not run yet counts as the longest so far of these data and size; NaN
        where nothing tells, as of another source network."""
        if kind in self.spent:
            seconds, amount = self.spent[kind]
            return seconds / amount
        what, *_, method = kind
        if what != "set" or "@" in method:
            return math.nan
        return max((self.rate(other) for other in self.spent if other[:-1] == kind[:-1]), default=math.nan)

    def left(self, pieces: Sequence[Piece]) -> str:
        """The time that these pieces take; those that nothing tells of are counted apart."""
        todo = [work for work in (piece.left() for piece in pieces) if work]
        seconds = [sum(amount * self.rate(kind) for kind, amount in work.items()) for work in todo]
        told = [s for s in seconds if not math.isnan(s)]
        parts = [f"about {timedelta(seconds=round(sum(told)))} for {len(told)}"] if told else []
        parts += [f"no measure yet for {len(todo) - len(told)}"] if len(todo) > len(told) else []
        return f"{len(todo)} left: {', '.join(parts)}" if todo else "nothing left"


def plan(asked: Asked, found: Sequence[Data], ipcs: Sequence[int]) -> tuple[list[tuple[str, Piece]], list[str]]:
    """(stage, piece) in order, each piece once, and what cannot be done, in sentences."""
    pieces, refused = {}, {}
    budget = BUDGETS[asked.budget]
    for stage in asked.stages:
        if stage.ipc not in (None, *ipcs):
            continue
        begun = set()
        if stage.only and asked.folder.is_dir():
            begun = {name for name, _ in paper.stand_ins(stage.name, readback.load_results(asked.folder))}
        cells = list(stage.cells(found, budget.sets, begun))
        if begun and found and not cells:
            refused[f"{stage.title}: {', '.join(begun)} stands in for {stage.only} already: name it to go on"] = None
        for *cell, targets in cells:
            targets, too_large = fitting(cell[0], targets, budget)
            refused |= dict.fromkeys(f"{stage.title}: {sentence}" for sentence in too_large)
            try:
                piece = stage.piece(asked, *cell, targets)
            except ValueError as error:
                refused[f"{stage.title}: {error}"] = None
            else:
                pieces.setdefault(piece.key, (stage.title, piece))
    return list(pieces.values()), list(refused)


def fitting(data: Data, targets: Sequence[str] | None, budget: Budget) -> tuple[Sequence[str] | None, list[str]]:
    """Those of the networks that take images of this size, and why the others do not, in sentences."""
    found, too_large = [], []
    size = {name: value for name, value in budget.recipe.items() if name in ("width", "depth")}
    for network in targets or ():
        try:
            settle(data, data, network, **size)
            found.append(network)
        except ValueError as error:
            too_large.append(str(error))
    return found if targets else targets, too_large


def work(
    pieces: Sequence[tuple[str, Piece]],
    deadline: float | None,
    share: tuple[int, int] = (0, 1),
    after: Callable[[], None] = lambda: None,
) -> tuple[list[tuple[str, Piece]], list[str]]:
    """Do them one after the other, and after each what `after` does. Returns those that time left, and what failed, in sentences.

    share: (i, n) of the i-th of n campaigns that share the work: every n-th piece first, then what the others left, from the end.
    """
    clock, failed = Clock(), []
    i, n = share

    def attempt(stage: str, piece: Piece) -> str | None:
        try:
            told, spent = piece.do(deadline)
        except (Diverged, ValueError, OSError, RuntimeError) as error:
            failed.append(f"{stage}: {piece.name}: {error}")
            log.warning("%s", failed[-1])
            return None
        clock.note(spent)
        return told

    there = [(stage, piece) for stage, piece in pieces if not piece.left()]
    todo = [(stage, piece) for stage, piece in pieces if piece.left()]
    own = {piece.key for _, piece in pieces[i::n]}
    todo = [p for p in todo if p[1].key in own] + [p for p in reversed(todo) if p[1].key not in own]
    for stage, piece in there:  # read back, for what it took
        with suppress(OutOfTime):  # another process is at it
            attempt(stage, piece)
    log.info("%d of %d are there; %s", len(there), len(pieces), clock.left([piece for _, piece in todo]))
    for j, (stage, piece) in enumerate(todo):
        if deadline_passed(deadline):
            return todo[j:], failed
        begun = time.monotonic()
        try:
            told = attempt(stage, piece)
        except OutOfTime as stopped:
            log.info("%s: %s: %s", stage, piece.name, stopped)
            return todo[j:], failed
        if told is not None:
            took, rest = (
                timedelta(seconds=round(time.monotonic() - begun)),
                clock.left([later for _, later in todo[j + 1 :]]),
            )
            log.info("%s: %s: %s, in %s; %s", stage, piece.name, told, took, rest)
        after()
    return [], failed


def side_by_side(arguments: Sequence[str], workers: int, threads: int) -> int:
    """The same campaign in so many processes that share the work; returns the worst exit status."""
    command = [sys.executable, __file__, *arguments, "--workers", "1", "--threads", str(threads), "--share"]
    started: list[subprocess.Popen] = []
    try:
        for i in range(workers):
            started.append(subprocess.Popen([*command, f"{i}/{workers}"]))
        ended = [process.wait() for process in started]
    except (KeyboardInterrupt, SystemExit) as stopped:
        for process in started:
            if isinstance(stopped, SystemExit):  # an interrupt they get too
                process.terminate()
        for process in started:
            process.wait()
        raise
    return max(
        128 - status if status < 0 else status for status in ended
    )  # below 0: killed by a signal of that number


def listing(pieces: Sequence[tuple[str, Piece]]) -> Iterator[str]:
    """What --dry-run says: the pieces by stage, and what is left of each."""
    for stage, some in groupby(pieces, key=lambda pair: pair[0]):
        yield stage
        for _, piece in some:
            left: Counter[str] = Counter()
            for (what, *_), amount in piece.left().items():
                left[what] += amount
            told = [f"{n} {what.removesuffix('s') if n == 1 else what}" for what, n in left.items()]
            yield f"  {piece.name}: " + (", ".join(told) or "done")
    yield f"{sum(bool(piece.left()) for _, piece in pieces)} of {len(pieces)} are left"


def prepare(
    asked: Asked, datasets: Sequence[str], ipcs: Sequence[int], download: bool = True
) -> tuple[list[tuple[str, Piece]], list[str]]:
    """`plan` for the data sets that are at hand, or can be had; what is left out is logged. Raises ValueError for bad input."""
    for table in asked.tables:
        choose({stage.name: None for stage in STAGES}, "table", table)
    for method in asked.methods:
        choose({m: None for stage in STAGES for m in stage.methods}, "method", method)
    known = sorted({stage.ipc for stage in STAGES if stage.ipc is not None})
    for ipc in ipcs:
        if ipc not in known:
            raise ValueError(f"no table has {ipc} images per class: choose from {', '.join(map(str, known))}")
    if asked.changes and not any(asked.stages):
        raise ValueError("--change is for condensed sets, and none is asked for: name other --tables or --methods")
    found, missing = [], []
    for name in dict.fromkeys(datasets):
        try:
            found.append(load_data(name, data_dir=asked.data_dir, progress=asked.progress, download=download))
        except FileNotFoundError as error:
            missing.append(str(error))
    pieces, refused = plan(asked, found, ipcs)
    left_out = missing + refused
    for sentence in left_out:
        log.warning("left out: %s", sentence)
    return pieces, left_out


def run(asked: Asked, datasets: Sequence[str], ipcs: Sequence[int], deadline: float | None) -> int:
    """The campaign; returns the exit status."""
    pieces, left_out = prepare(asked, datasets, ipcs)
    update = partial(update_readme, asked.results_dir)
    try:
        undone, failed = work(pieces, deadline, asked.share, update)
    finally:
        update()
    log.info("the results are in %s", asked.folder)
    if undone:
        stages = "; ".join(f"{stage}: {n}" for stage, n in Counter(stage for stage, _ in undone).items())
        log.info(
            "the time budget is used up and %d of %d are left (%s): run again to go on",
            len(undone),
            len(pieces),
            stages,
        )
    return 1 if left_out or failed else 0


def update_readme(results_dir: Path) -> None:
    """Write into the README of the results, where it has the place for it, what each folder was made with."""
    path = results_dir / "README.md"
    text = path.read_text() if path.is_file() else ""
    if overview.BEGIN not in text:
        return
    try:
        write_atomically(path, overview.readme(text, results_dir).encode())
    except (ValueError, OSError) as error:
        log.warning("%s is not brought up to date: %s", path, error)


def start_log(file: Path | None) -> None:
    """Lines with the time go to stdout and, where one is given, to the end of a file."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)


def changes_of(spelt: Sequence[str]) -> dict[str, Any]:
    """{field: value} of "lr_images=0.01" and the like, as a recipe spells it; ValueError unless it has such fields.

    Those that make another method, or networks of another size, which are tested otherwise, are none of them.
    """
    found: dict[str, Any] = {}
    own = ("dataset", "ipc", "seed", "what", "how", "where", "network", "width", "depth")
    for one in spelt:
        name, equals, value = one.partition("=")
        choose({f.name: None for f in fields(Recipe) if f.name not in own}, "recipe field to change", name)
        if not equals:
            usual = shipped.spell_changes({name: getattr(Recipe, name)})
            raise ValueError(f"--change {one} does not fit: give a value too, as in {usual}")
        if name in found:
            raise ValueError(f"--change has {name} twice: give it one value")
        with suppress(ValueError):  # else it is a word
            value = json.loads(value)
        found[name] = float(value) if isinstance(getattr(Recipe, name), float) and type(value) is int else value
    made = Recipe(**found)  # a value that no recipe has is told before anything else
    return {name: getattr(made, name) for name in found}


def share_of(spelt: str) -> tuple[int, int]:
    """(i, n) of "i/n"; ValueError unless 0 <= i < n."""
    i, slash, n = spelt.partition("/")
    if not (slash and i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise ValueError(
            f"--share {spelt} does not fit: give the number of this campaign, from 0, and of all, as in 0/2 and 1/2"
        )
    return int(i), int(n)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--datasets",
        nargs="+",
        default=["MNIST"],
        help="names, or imagefolder:PATH, of those at hand; default: MNIST",
    )
    add(
        "--ipc",
        nargs="+",
        type=int,
        default=[1, 10, 50],
        help="only the tables of so many images per class; default: 1 10 50",
    )
    add("--budget", default="paper", help=f"one of {', '.join(BUDGETS)}; default: paper")
    add("--tables", nargs="+", default=[], help='only these, as in --tables "Table 3" "Whole data"; default: all')
    add("--methods", nargs="+", default=[], help="only these of the tables' methods; default: all")
    told = "make condensed sets with these fields of the budget's recipe changed, to see what they do; under results/probes/"
    add("--change", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", dest="changes", help=told)
    add("--time-budget", type=float, metavar="SECONDS", help="stop after this many; default: until done")
    add("--results-dir", type=Path, default=shipped.FOLDER, help="default: results/ in the repository")
    add("--data-dir", type=Path, help="default: GMLIB_DATA, else ./data")
    add("--device", help="default: a GPU where there is one")
    add(
        "--workers",
        type=int,
        default=1,
        help="processes that share the work, where one does not fill the device; default: 1",
    )
    add("--share", default="0/1", metavar="I/N", help="this is the I-th, from 0, of N campaigns that share the work")
    add(
        "--threads",
        type=int,
        help="CPU threads of each worker; default: as PyTorch chooses, shared among the workers",
    )
    add("--log", type=Path, help="default: campaign-BUDGET.log, in the repository under runs/")
    add("--dry-run", action="store_true", help="list the work, and what of it is left; nothing is run or written")
    given = parser.parse_args(arguments)
    try:
        deadline = deadline_in(given.time_budget)
        choose(BUDGETS, "budget", given.budget)
        check_number("workers", given.workers, least=1, whole=True)
        threads = max(1, torch.get_num_threads() // given.workers) if given.threads is None else given.threads
        check_number("threads", threads, least=1, whole=True)
        torch.set_num_threads(threads)
        only = {"tables": tuple(given.tables), "methods": tuple(given.methods), "share": share_of(given.share)}
        only["changes"] = changes_of(given.changes)
        asked = Asked(
            given.budget, given.results_dir, given.data_dir, device_of(given.device), sys.stderr.isatty(), **only
        )
        file = given.log or store.default_folder(given.budget).with_name(f"campaign-{given.budget}.log")
        start_log(None if given.dry_run else file)
        if given.dry_run:
            pieces, left_out = prepare(asked, given.datasets, given.ipc, download=False)
            print("\n".join(listing(pieces)))
            return 1 if left_out else 0
        if given.workers > 1:
            prepare(asked, given.datasets, given.ipc)  # bad input is told once
            try:
                return side_by_side(sys.argv[1:] if arguments is None else arguments, given.workers, threads)
            finally:
                update_readme(asked.results_dir)  # of two workers the slower one may have written an older state
        log.info("campaign %s", shlex.join(sys.argv[1:] if arguments is None else arguments))
        return run(asked, given.datasets, given.ipc, deadline)
    except ValueError as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("campaign: stopped; the same command goes on from what is stored", file=sys.stderr)
        return 130


def terminated(*_: object) -> None:
    """As an exception, so that what is begun is put away and the workers end too."""
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    sys.exit(main())
