"""The command `gmlib`: condense a data set, look at a condensed set, take it, judge it, from the shell.

    gmlib estimate digits --ipc 10 --budget smoke          how long it will take, and how much memory
    gmlib condense digits --ipc 10 --budget smoke --out set.safetensors
    gmlib show set.safetensors --out set.png               what it is, and its picture
    gmlib export set.safetensors --png folder              or --npz set.npz
    gmlib evaluate set.safetensors --data digits --networks 5
    gmlib run --cells cells.csv --budget lite              cells of the paper's tables
    gmlib --version

DATA is a name such as digits or MNIST, or "imagefolder:PATH" for a folder with a subfolder of images for each class.
Results go to the standard output, with --json as one object; progress and messages go to the standard error. Ctrl-C
saves: condense and run continue when run again.

Exit status: 0 done; 1 failed on the way; 2 bad input; 130 interrupted; 143 terminated. For run also: 1 a cell failed
or was left out, and the others were done; 3 the time budget was used up, run again to continue.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import tyro
from docstring_parser import parse
from tqdm import tqdm

from . import __version__
from .checks import check_number
from .condensation import Diverged, condense
from .data import Data
from .datasets import load_data, usual_name
from .evaluation import Protocol, evaluate
from .exchange import check_new_folder, file_to_write, write_folder
from .files import as_path, check_tensor_path, path_or, write_atomically
from .judging import judge
from .recipe import BUDGETS, Recipe
from .runs import tasks
from .runs.cells import FILE, FOLDER, BadLine, Wanted, read_lines
from .runs.estimates import estimate
from .runs.shipped import folder, read_changes
from .runtime import deadline_in, device_of
from .sets import SyntheticSet

# ---- options ---------------------------------------------------------------------------------------------


def _optional(of: type, about: str, leave_out: Sequence[str] = ()) -> type:
    """The fields of a dataclass as options with their explanations. None leaves a field as it usually is."""
    explained = {}
    for parameter in parse(of.__doc__ or "").params:
        for name in parameter.arg_name.split(", "):
            explained[name] = " ".join((parameter.description or "").replace("`", "").split())
    made = []
    for name, kind in get_type_hints(of).items():
        if name in leave_out or name not in {f.name for f in fields(of)}:
            continue
        of_one = kind.__args__[0] if hasattr(kind, "__args__") else kind
        option = tyro.conf.arg(help=explained[name], metavar=of_one.__name__.upper(), help_behavior_hint="")
        made.append((name, Annotated[of_one | None, option], None))
    return make_dataclass(of.__name__, made, namespace={"__doc__": about})


RecipeFields: Any = _optional(
    Recipe, "Change single fields of the method and budget.", leave_out=("dataset", "ipc", "seed")
)
ProtocolFields: Any = _optional(
    Protocol,
    "Train otherwise than in the paper. Without them, width and depth are those of the set.",
    leave_out=("precision",),
)
Boxed = tyro.conf.OmitArgPrefixes  # options with a box of their own in the help
Word = Annotated[str, tyro.conf.arg(metavar="NAME")]
File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Number = Annotated[int, tyro.conf.arg(metavar="N")]
Words = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(default: all)")]
Numbers = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...", help_behavior_hint="(default: all)")]


@dataclass(kw_only=True)
class Machine:
    """Where the data are, and what computes."""

    data_dir: Path | None = None
    """Folder of the data sets. None: GMLIB_DATA, else ./data."""
    size: Annotated[str | None, tyro.conf.arg(metavar="N or HxW")] = None
    """Resize the images of a folder, or of TinyImageNet: 32 for squares, 24x40 for 24 pixels down and 40 across."""
    device: str | None = None
    """Such as cuda or cpu. None: a GPU if there is one."""
    quiet: bool = False
    """Show no progress."""

    def load(self, name: str, download: bool = True, S: SyntheticSet | None = None) -> Data:
        """Load a data set, of the size and scale of S where they are free."""
        options: dict[str, Any] = {"data_dir": self.data_dir, "download": download, "progress": not self.quiet}
        if self.size is not None:
            sides = self.size.lower().split("x")
            options["size"] = [int(side) if side.isdecimal() else side for side in sides]
        if S is not None and name.startswith(FOLDER):
            options = {"size": S.shape[1:], "mean": S.mean, "std": S.std} | options
        return load_data(name, **options)


@dataclass(kw_only=True)
class Plan:
    """What is condensed, and how."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A name such as digits or MNIST, or "imagefolder:PATH"."""
    ipc: Number = 1
    """Images per class."""
    method: Word = "MDA"
    """DC, M, MD, MDO, MDA, Inter or Interleaved, or "what,how,where" such as "multi,d1+d2,fixed"."""
    budget: Word = "paper"
    """How much of the paper's protocol is run: smoke (a minute or less for small images), lite or paper (hours)."""
    seed: Number = 0
    """Seed of all random numbers."""
    recipe: Annotated[RecipeFields, Boxed] = field(default_factory=RecipeFields)

    def to_recipe(self) -> Recipe:
        """The recipe that was asked for. The data are not needed yet."""
        return Recipe.for_method(
            self.method, usual_name(self.data), self.ipc, self.budget, self.seed, **given(self.recipe)
        )


def given(options: Any) -> dict[str, Any]:
    """The options of `_optional` that were given."""
    return {name: value for name, value in asdict(options).items() if value is not None}


# ---- commands --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Condense(Plan):
    """Learn a few images per class of a data set. The set goes to a safetensors file."""

    out: File
    """The file of the set. While it forms, a checkpoint lies beside it."""
    json: bool = False
    """Print the result as JSON."""
    machine: Annotated[Machine, Boxed] = field(default_factory=Machine)

    def run(self) -> int:
        """Condense, save, and say what was made."""
        out = check_tensor_path(self.out)
        if out.is_dir() or not out.parent.is_dir():
            raise ValueError(f"the set cannot be written to {out}: name a file in a folder that exists")
        recipe = self.to_recipe()
        data = self.machine.load(self.data)
        if out.exists():
            print(f"gmlib: {out} exists and will be replaced", file=sys.stderr)
        checkpoint = out.with_name(f"{out.stem}-checkpoint.safetensors")
        S = condense(data, recipe, self.machine.device, checkpoint, not self.machine.quiet)
        digest = S.save(out)
        checkpoint.unlink(missing_ok=True)
        seconds = sum(entry["seconds"] for entry in S.history)
        loss = S.history[-1]["loss"]
        found = {"set": str(out), "sha256": digest, "recipe": S.recipe, "seconds": seconds, "loss": loss}
        return say(found if self.json else f"{out}: {S!r}, matching loss {loss:.4g}")


@dataclass(kw_only=True)
class Estimate(Plan):
    """Say how long condensing and testing will take here, and how much memory. It times a few steps."""

    networks: Number = 50
    """Networks to train on the set."""
    json: bool = False
    """Print the result as JSON."""
    machine: Annotated[Machine, Boxed] = field(default_factory=Machine)

    def run(self) -> int:
        """Time some steps."""
        recipe = self.to_recipe()
        data = self.machine.load(self.data)
        found = estimate(data, recipe, self.machine.device, self.networks)
        return say(asdict(found) if self.json else found)


@dataclass(kw_only=True)
class Show:
    """Say what a set is and how it was made. With --out its picture is written too."""

    set: Annotated[File, tyro.conf.Positional, tyro.conf.arg(metavar="SET")]
    """A set that gmlib saved."""
    out: File | None = None
    """A PNG file for the picture: a column for each class."""
    full_range: bool = False
    """Show the darkest pixel as black and the lightest as white. Otherwise pixels are clipped to [0, 1]."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Describe the set."""
        S = SyntheticSet.load(self.set)
        picture = S.show(self.out, full_range=self.full_range) if self.out else None
        counts = dict(zip(S.classes, S.counts, strict=True))
        if self.json:
            found = {"set": str(self.set), "shape": S.shape, "images": counts, "mean": S.mean, "std": S.std}
            return say(found | {"recipe": S.recipe, "picture": picture and str(picture)})
        made = ", ".join(f"{name}={value}" for name, value in S.recipe.items() if value is not None)
        lines = [repr(S), "classes: " + ", ".join(f"{name} ({n})" for name, n in counts.items())]
        return say("\n".join([*lines, f"recipe: {made or 'unknown'}", *([f"picture: {picture}"] if picture else [])]))


@dataclass(kw_only=True)
class Export:
    """Write a set in another form: a folder of PNG files for each class, or one NumPy file."""

    set: Annotated[File, tyro.conf.Positional, tyro.conf.arg(metavar="SET")]
    """A set that gmlib saved."""
    png: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A new folder: PNG files, in a subfolder for each class. Pixels are clipped to [0, 1], and the loss is named."""
    npz: File | None = None
    """A file of NumPy arrays: images, labels, classes, mean and std. Nothing is lost."""

    def run(self) -> int:
        """Write what was asked for."""
        if not (self.png or self.npz):
            raise ValueError("there is nothing to write: give --png DIR, --npz FILE, or both")
        S = SyntheticSet.load(self.set)
        if self.png:
            check_new_folder(self.png)
        if self.npz:
            file_to_write(self.npz, ".npz")
        if self.png:
            say(f"{self.png}: {write_folder(S, self.png, quiet=True)}")
        if self.npz:
            S.to_npz(self.npz)
            say(f"{self.npz}: {S!r}")
        return 0


@dataclass(kw_only=True)
class Evaluate:
    """Train networks on a set, and test them on real images."""

    set: Annotated[File, tyro.conf.Positional, tyro.conf.arg(metavar="SET")]
    """A set that gmlib saved."""
    data: Annotated[str, tyro.conf.arg(metavar="DATA")]
    """The data set it was made from, or images added later. Those of a folder get the size and scale of the set."""
    network: Word = "convnet"
    """Their architecture."""
    networks: Number = 50
    """How many."""
    seed: Number = 0
    """Seed of the networks."""
    protocol: Annotated[ProtocolFields, Boxed] = field(default_factory=ProtocolFields)
    judge: bool = False
    """Also train on as many random real images, and on all of them: the gain (IOR) and the gap (HLR)."""
    random_sets: Number = 3
    """With --judge: how many sets of random images. 0 leaves them out."""
    no_whole: bool = False
    """With --judge: leave out the networks on all training images, which may take long."""
    whole_epochs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """With --judge: epochs on all training images. None takes what the protocol trains, up to a limit."""
    json: bool = False
    """Print the result as JSON."""
    machine: Annotated[Machine, Boxed] = field(default_factory=Machine)

    def run(self) -> int:
        """Train and test."""
        S = SyntheticSet.load(self.set)
        data = self.machine.load(self.data, S=S)
        options = {"device": self.machine.device, "progress": not self.machine.quiet, **given(self.protocol)}
        asked = (S, data, self.network, self.networks, self.seed)
        judged = None
        if self.judge:
            options |= {"random_sets": self.random_sets, "whole": not self.no_whole}
            judged = judge(*asked, whole_epochs=self.whole_epochs, **options)
        found = judged.evaluation if judged else evaluate(*asked, **options)
        if not self.json:
            return say(judged or f"{self.network}: {found}")
        more: dict[str, Any] = {"n": found.n, "mean": found.mean, "std": found.std, "balanced": found.balanced}
        if judged:
            random = [each.mean for each in judged.random]
            whole = judged.whole and judged.whole.mean
            more |= {"ior": judged.ior, "hlr": judged.hlr, "random": random, "whole": whole}
        return say(asdict(found) | more)


@dataclass(kw_only=True)
class Run:
    """Make cells of the paper's tables: sets, networks trained on them, and measurements.

    What is stored is not done again. Several copies of the command can share the work.
    """

    cells: File = FILE
    """A CSV file of cells. The one of the repository holds every table of the paper."""
    budget: Word = "paper"
    """How much of the paper's protocol is run: smoke, lite or paper."""
    datasets: Words = ()
    """Only these data sets."""
    ipc: Numbers = ()
    """Only these numbers of images per class."""
    tables: Words = ()
    """Only these tables, as in --tables "Table 3" "Whole data"."""
    methods: Words = ()
    """Only these methods."""
    seeds: Numbers = ()
    """Only the sets with these seeds."""
    measures: Words = ()
    """Only these of networks, reach, pulls and whole. A set comes with networks."""
    only_sets: bool = False
    """Make sets, and train no networks on them."""
    networks: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """For each set. None: ten for every set first, then the budget's number."""
    precision: Word = "auto"
    """Of the pass over real images. auto takes bf16 where this machine is faster with it, else float32."""
    change: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE ...", help_behavior_hint="(default: none)")
    ] = ()
    """Make condensed sets with these recipe fields changed, to see what they do. They go to results/probes/."""
    results_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where results go. None: results/ of the repository."""
    time_budget: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Stop after this time."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads. None: as PyTorch chooses."""
    log: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write what is said to the end of this file."""
    dry_run: bool = False
    """List the cells, what is left of each and how long that takes here. Only some steps are timed."""
    machine: Annotated[Machine, Boxed] = field(default_factory=Machine)

    def run(self) -> int:
        """Make the cells."""
        deadline = deadline_in(self.time_budget)
        if self.threads is not None:
            torch.set_num_threads(check_number("threads", self.threads, least=1, whole=True))
        options = tasks.Options(
            budget=self.budget,
            results_dir=self.results_dir,
            networks=self.networks,
            precision=self.precision,
            changes=read_changes(self.change),
            only_sets=self.only_sets,
            device=device_of(self.machine.device),
            progress=not self.machine.quiet and sys.stderr.isatty(),
            pulls=measure_pulls,
        )
        wanted = Wanted(self.tables, self.datasets, self.ipc, self.methods, self.seeds, self.measures)
        cells = wanted.of(read_lines(self.cells), BUDGETS[self.budget].sets)
        found, left_out = tasks.plan(cells, self.machine.load, options, download=not self.dry_run)
        with timed_lines(None if self.dry_run else self.log), ends_when_terminated():
            for sentence in left_out:
                tasks.log.warning("left out: %s", sentence)
            if self.dry_run:
                for line in tasks.listing(found, device_of(self.machine.device)):
                    say(line)
                return int(bool(left_out))
            update = partial(update_readme, self.results_dir)
            try:
                undone, failed = tasks.do_all(found, deadline, update, not self.machine.quiet)
            finally:  # the last set may have got some of its networks
                update()
            if undone:
                left = {task.cell: task.cell.table for task in undone}  # each once, whatever the number of its tasks
                by_table = "; ".join(f"{table}: {n}" for table, n in Counter(left.values()).items() if table)
                of = f"{len(left)} of {len({task.cell for task in found})} cells are left"
                tables = f" ({by_table})" if by_table else ""
                tasks.log.warning("the time budget is used up and %s%s: run again to continue", of, tables)
        return 1 if failed or left_out else 3 if undone else 0


def measure_pulls(*args: Any, **options: Any) -> Any:
    """`gmlib.analysis.matching.pulls`, which needs the extra "analysis"."""
    from .analysis.matching import pulls

    return pulls(*args, **options)


@contextmanager
def ends_when_terminated() -> Iterator[None]:
    """End with an exception at SIGTERM, so that what is open is closed."""

    def end(*_: object) -> None:
        raise SystemExit(143)

    if threading.current_thread() is not threading.main_thread():  # signals come to that one only
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit:
        tasks.log.warning("terminated: run the same command again to continue")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class LineHandler(logging.StreamHandler):
    """Writes lines to a terminal without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line above the bar."""
        try:
            tqdm.write(self.format(record), file=self.stream)
            self.flush()
        except Exception:  # as in every handler: work goes on if a line cannot be written
            self.handleError(record)


@contextmanager
def timed_lines(file: Path | None) -> Iterator[None]:
    """Print what the tasks say: results with the time to the standard output, the rest to the standard error.

    All of it is also written to the end of a file if one is given.
    """
    timed = logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    results, problems = LineHandler(sys.stdout), LineHandler(sys.stderr)
    results.setFormatter(timed)
    results.addFilter(lambda record: record.levelno < logging.WARNING)
    problems.setFormatter(logging.Formatter("gmlib: %(message)s"))
    problems.setLevel(logging.WARNING)
    handlers: list[logging.Handler] = [results, problems]
    if file is not None:
        file = as_path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
        handlers[-1].setFormatter(timed)
    before = tasks.log.level
    tasks.log.setLevel(logging.INFO)
    tasks.log.propagate = False
    for handler in handlers:
        tasks.log.addHandler(handler)
    try:
        yield
    finally:
        tasks.log.setLevel(before)
        tasks.log.propagate = True
        for handler in handlers:
            tasks.log.removeHandler(handler)
            handler.close()


def update_readme(results_dir: Path | None) -> None:
    """Write how each folder of results was made into their README, if it has the marks for it."""
    root = path_or(results_dir, folder("paper"))
    path = root / "README.md"
    if not path.is_file():
        return
    try:
        from .runs import overview  # needs the extra "analysis"

        text = path.read_text("utf-8")
        if overview.BEGIN in text:
            write_atomically(path, overview.readme(text, root).encode())
    except (ValueError, OSError, ModuleNotFoundError) as error:
        tasks.log.warning("%s was not updated: %s", path, error)


# ---- the command -----------------------------------------------------------------------------------------


def say(found: object) -> int:
    """Print a result, a dict as JSON. Returns the exit status 0."""
    print(json.dumps(_for_json(found)) if isinstance(found, dict) else found)
    return 0


def _for_json(value: Any) -> Any:
    """The same value without what JSON lacks: NaN and infinity become null."""
    if isinstance(value, dict):
        return {key: _for_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_for_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_lists(words: Sequence[str]) -> None:
    """Check the options of `Run` that take several values.

    Raises
    ------
    ValueError
        If one is given twice, where the parser would take the last and say nothing, or without a value, which would
        mean all.
    """
    several = {f"--{option.name.replace('_', '-')}" for option in fields(Run) if option.default == ()}
    given: set[str] = set()
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in several:
            if name in given:
                raise ValueError(f"{name} is given twice: give all its values after one")
            if not value if equals else following.startswith("--"):
                raise ValueError(f"{name} has no value: give one, or leave it out")
            given.add(name)


def fail(status: int, reason: object) -> int:
    """Print a reason to the standard error. Returns the exit status."""
    print(f"gmlib: {reason}", file=sys.stderr)
    return status


def in_shell_words(message: str, command: Any) -> str:
    """A message of the library, with arguments as options: "give size= to" becomes "give --size to"."""
    names = {"n_networks": "networks"}
    todo = [command]
    while todo:
        options = todo.pop()
        names |= {of.name: of.name.replace("_", "-") for of in fields(options)}
        todo += [value for value in vars(options).values() if is_dataclass(value)]
    word = re.compile(rf"(?<![\w/.-])({'|'.join(map(re.escape, names))})=(?=[\s\w'\"-]|$)")
    return word.sub(lambda found: f"--{names[found[1]]} ".replace("  ", " "), message).replace("  ", " ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        None takes those of the process.

    Returns
    -------
    int
        The exit status.
    """
    logging.basicConfig(format="gmlib: %(message)s")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        return say(f"gmlib {__version__}")
    if arguments[:1] == ["run"]:
        try:
            check_lists(arguments)
        except ValueError as error:
            return fail(2, error)
    command: Any = tyro.cli(
        Condense | Show | Export | Evaluate | Estimate | Run,
        prog="gmlib",
        description=__doc__,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    try:
        status = command.run()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as with "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BadLine as error:  # its words are columns of the file
        return fail(2, error)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        return fail(2, in_shell_words(str(error), command))
    except (Diverged, OSError) as error:
        return fail(1, error)
    except KeyboardInterrupt:
        return fail(130, "interrupted: run the same command again; condense and run continue where they last saved")


if __name__ == "__main__":
    sys.exit(main())
