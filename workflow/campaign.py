"""Make the results of the paper's tables, the most informative first:

    python workflow/campaign.py --budget lite --datasets MNIST FashionMNIST --ipc 1 10 --time-budget 3600

First every set gets ten networks, then the others of its budget. Sets with one image per class that share a seed
are condensed together. What is stored is not done again, so the same command continues after a stop, a kill or the
end of the time budget. Several copies of it at once, on one machine or on several with a common disk, share the
work. Runs by the paper's protocol go to results/, those of another budget to results/<budget>/, and sets made with
--change to results/probes/<change>/.

Exit status: 0 done; 1 something could not be done or was left out, as the log says; 2 bad input, nothing was run;
3 the time budget was used up, run again to continue; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import groupby, product
from pathlib import Path

import torch
from pieces import PIECES, Asked, Piece
from tqdm.contrib.logging import logging_redirect_tqdm

from gmlib import BUDGETS, Data, Diverged, OutOfTime, load_data
from gmlib.checks import check_number, choose
from gmlib.evaluation import resolve_protocol
from gmlib.files import as_path, write_atomically
from gmlib.recipe import PRECISIONS, Budget
from gmlib.runs import layout, overview, readback, shipped, store, work
from gmlib.runs.estimates import Estimate, duration, estimate
from gmlib.runs.locks import Busy
from gmlib.runtime import deadline_in, deadline_passed, device_of, progress_bar

log = logging.getLogger("campaign")


# ---- planning --------------------------------------------------------------------------------------------


def prepare(
    asked: Asked, datasets: Sequence[str], ipcs: Sequence[int], download: bool = True
) -> tuple[list[tuple[str, Piece]], list[str]]:
    """`plan` for the data sets that can be loaded. What is left out is logged. Raises ValueError for bad input."""
    for table in asked.tables:
        choose({stage.name: None for stage in work.STAGES}, "table", table)
    for method in asked.methods:
        choose({m: None for stage in work.STAGES for m in stage.methods}, "method", method)
    known = sorted({stage.ipc for stage in work.STAGES if stage.ipc is not None})
    for ipc in ipcs:
        if ipc not in known:
            raise ValueError(f"no table has {ipc} images per class: choose from {', '.join(map(str, known))}")
    if asked.changes and not any(asked.stages):
        raise ValueError("--change is for condensed sets, and none is selected: name other --tables or --methods")
    found, left_out = [], []
    for name in dict.fromkeys(datasets):
        try:
            found.append(load_data(name, data_dir=asked.data_dir, progress=asked.progress, download=download))
        except FileNotFoundError as error:
            left_out.append(str(error))
    pieces, refused = plan(asked, found, ipcs)
    left_out += refused
    for sentence in left_out:
        log.warning("left out: %s", sentence)
    return pieces, left_out


def plan(asked: Asked, found: Sequence[Data], ipcs: Sequence[int]) -> tuple[list[tuple[str, Piece]], list[str]]:
    """(title of a stage, piece) in order, each piece once; and what cannot be done, in sentences.

    First every set gets the networks that a verdict needs, then those that are left.
    """
    pieces: dict[tuple, tuple[str, Piece]] = {}
    refused: dict[str, None] = {}
    budget = BUDGETS[asked.budget]
    rounds = sorted({min(layout.LEAST_NETWORKS, budget.networks), budget.networks})
    for networks, stage in product(rounds, list(asked.stages)):
        if stage.ipc not in (None, *ipcs):
            continue
        begun: set[str] = set()
        if stage.only and asked.folder.is_dir():
            runs = readback.load_results(asked.folder)[["dataset", "ipc", "method"]]
            begun = {name for name, _ in work.stand_ins(stage.name, runs.itertuples(index=False, name=None))}
        cells = list(stage.cells(found, budget.sets, begun))
        if begun and found and not cells:
            replaced = f"{', '.join(begun)} already replaces {stage.only}: add it to the data sets to continue"
            refused[f"{stage.title}: {replaced}"] = None
        for *cell, targets in cells:
            targets, too_large = fitting(cell[0], targets, budget)
            refused |= dict.fromkeys(f"{stage.title}: {sentence}" for sentence in too_large)
            try:
                sizes = (networks,) if stage.kind == "sets" else ()
                piece = PIECES[stage.kind](asked, *cell, targets, *sizes)
            except ValueError as error:
                refused[f"{stage.title}: {error}"] = None
            else:
                pieces.setdefault(piece.key, (stage.title, piece))
    return list(pieces.values()), list(refused)


def fitting(data: Data, targets: Sequence[str] | None, budget: Budget) -> tuple[Sequence[str] | None, list[str]]:
    """The networks that take images of this size, and why the others do not, in sentences."""
    if targets is None:
        return None, []
    found, too_large = [], []
    size = {name: value for name, value in budget.recipe.items() if name in ("width", "depth")}
    for network in targets:
        try:
            resolve_protocol(data, data, network, **size)
            found.append(network)
        except ValueError as error:
            too_large.append(str(error))
    return found, too_large


def listing(pieces: Sequence[tuple[str, Piece]], device: torch.device) -> Iterator[str]:
    """The lines of --dry-run: the pieces by stage, what is left of each, and how long that takes here."""
    timed: dict[tuple, Estimate] = {}
    number = 0
    total: dict[Path, tuple[float, float]] = {}  # of the set in a folder: seconds for it, and for its networks
    for stage, some in groupby(pieces, key=lambda pair: pair[0]):
        yield stage
        for _, piece in some:
            left = piece.left()
            number += bool(left)
            words = [f"{n} {what}{'s' if n > 1 else ''}" for what, n in left.items()]
            if left and piece.job and not piece.job.coreset:
                of_set, of_networks = seconds_left(piece.job, left, device, timed)
                before = total.get(piece.job.folder, (0.0, 0.0))
                total[piece.job.folder] = (max(of_set, before[0]), max(of_networks, before[1]))
                words.append(f"about {duration(of_set + of_networks)}")
            yield f"  {piece.name}: {', '.join(words) or 'done'}"
    hours = f"; condensed sets and their networks: about {duration(sum(map(sum, total.values())))}" if total else ""
    yield f"{number} of {len(pieces)} are left{hours}"


def seconds_left(
    job: store.Job, left: dict[str, int], device: torch.device, timed: dict[tuple, Estimate]
) -> tuple[float, float]:
    """Seconds for the set of a job, made alone, and for its networks as if all were ConvNets.

    Recipes that differ in their seed only are timed once. ``timed`` keeps them.
    """
    kind = (job.data.fingerprint, replace(job.recipe, seed=0))
    if kind not in timed:
        timed[kind] = estimate(job.data, job.recipe, device, 1, job.protocol, seconds=4)
    found = timed[kind]
    return left.get("set", 0) * found.seconds_condensing, left.get("network", 0) * found.seconds_evaluating


# ---- running ---------------------------------------------------------------------------------------------


def run(asked: Asked, datasets: Sequence[str], ipcs: Sequence[int], deadline: float | None) -> int:
    """The campaign. Returns the exit status."""
    pieces, left_out = prepare(asked, datasets, ipcs)
    try:
        with logging_redirect_tqdm():
            undone, failed = do_all(pieces, deadline, lambda: update_readme(asked.results_dir))
    finally:
        update_readme(asked.results_dir)
    log.info("the results are in %s", asked.folder)
    if undone:
        stages = "; ".join(f"{stage}: {n}" for stage, n in Counter(stage for stage, _ in undone).items())
        out_of_time = "the time budget is used up and %d of %d are left (%s): run again to continue"
        log.info(out_of_time, len(undone), len(pieces), stages)
    return 1 if left_out or failed else 3 if undone else 0


def do_all(
    pieces: Sequence[tuple[str, Piece]], deadline: float | None, after_each: Callable[[], None]
) -> tuple[list[tuple[str, Piece]], list[str]]:
    """Do the pieces in order. Those that another process works on are tried again after the others.

    Returns the pieces that were not done in time, and what failed, in sentences.
    """
    failed: list[str] = []
    jobs = [piece.job for _, piece in pieces if piece.job]

    def attempt(stage: str, piece: Piece, wait: bool) -> None:
        started = time.monotonic()
        try:
            is_new = bool(piece.left())
            found = piece.do(deadline, wait, jobs)
        except (Diverged, ValueError, OSError, RuntimeError) as error:
            failed.append(f"{stage}: {piece.name}: {error}")
            log.warning("%s", failed[-1])
        else:
            if is_new:
                seconds = timedelta(seconds=round(time.monotonic() - started))
                log.info("%s: %s: %s, in %s", stage, piece.name, found, seconds)

    stored, todo = [], []
    for stage, piece in pieces:
        (todo if piece.left() else stored).append((stage, piece))
    log.info("%d of %d are stored", len(stored), len(pieces))
    for stage, piece in stored:  # reading back checks them
        with suppress(OutOfTime):
            attempt(stage, piece, wait=False)
    with progress_bar("campaign", len(pieces), "piece", True, initial=len(stored)) as bar:
        wait = False
        while todo:
            held = []
            for n, (stage, piece) in enumerate(todo):
                if deadline_passed(deadline):
                    return held + todo[n:], failed
                try:
                    attempt(stage, piece, wait and n == 0)
                except Busy:
                    held.append((stage, piece))
                    continue
                except OutOfTime as stopped:
                    log.info("%s: %s: %s", stage, piece.name, stopped)
                    return held + todo[n:], failed
                after_each()
                bar.update()
            wait = len(held) == len(todo)
            if wait:
                log.info("other processes work on everything that is left: waiting for them")
            todo = held
    return [], failed


def update_readme(results_dir: Path) -> None:
    """Write how each folder was made into the README of the results, if it has the marks for it."""
    path = results_dir / "README.md"
    text = path.read_text("utf-8") if path.is_file() else ""
    if overview.BEGIN not in text:
        return
    try:
        write_atomically(path, overview.readme(text, results_dir).encode())
    except (ValueError, OSError) as error:
        log.warning("%s was not updated: %s", path, error)


# ---- the command line ------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    given = command_line().parse_args(arguments)
    try:
        deadline = deadline_in(given.time_budget)
        choose(BUDGETS, "budget", given.budget)
        choose(dict.fromkeys((*PRECISIONS, "auto")), "precision", given.precision)
        if given.threads is not None:
            check_number("threads", given.threads, least=1, whole=True)
            torch.set_num_threads(given.threads)
        asked = Asked(
            budget=given.budget,
            results_dir=given.results_dir,
            data_dir=given.data_dir,
            device=device_of(given.device),
            progress=sys.stderr.isatty(),
            tables=tuple(given.tables),
            methods=tuple(given.methods),
            precision=given.precision,
            changes=shipped.read_changes(given.changes),
        )
        if given.dry_run:
            start_log(None)
            pieces, left_out = prepare(asked, given.datasets, given.ipc, download=False)
            for line in listing(pieces, asked.device):
                print(line, flush=True)
            return 1 if left_out else 0
        start_log(given.log or store.default_folder(given.budget).with_name(f"campaign-{given.budget}.log"))
        log.info("campaign %s", shlex.join(sys.argv[1:] if arguments is None else arguments))
        return run(asked, given.datasets, given.ipc, deadline)
    except ValueError as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("campaign: stopped; the same command continues from what is stored", file=sys.stderr)
        return 130


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    datasets = "names, or imagefolder:PATH; default: MNIST"
    add("--datasets", nargs="+", default=["MNIST"], help=datasets)
    ipc = "only the tables with these numbers of images per class; default: 1 10 50"
    add("--ipc", nargs="+", type=int, default=[1, 10, 50], help=ipc)
    add("--budget", default="paper", help=f"one of {', '.join(BUDGETS)}; default: paper")
    add("--tables", nargs="+", default=[], help='only these, as in --tables "Table 3" "Whole data"; default: all')
    add("--methods", nargs="+", default=[], help="only these of the tables' methods; default: all")
    change = "make condensed sets with these recipe fields changed, to see what they do; they go to results/probes/"
    add("--change", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", dest="changes", help=change)
    precision = "auto (bf16 where the machine is faster with it), float32, bf16, tf32 or tf32+bf16; default: auto"
    add("--precision", default="auto", help=f"of the pass over real images: {precision}")
    add("--time-budget", type=float, metavar="SECONDS", help="stop after this time; default: when all is done")
    add("--results-dir", type=Path, default=shipped.FOLDER, help="default: results/ in the repository")
    add("--data-dir", type=Path, help="default: GMLIB_DATA, else ./data")
    add("--device", help="default: a GPU if there is one")
    add("--threads", type=int, help="CPU threads; default: as PyTorch chooses")
    add("--log", type=Path, help="default: campaign-BUDGET.log, in the repository under runs/")
    add(
        "--dry-run",
        action="store_true",
        help="list the work, what is left of it and how long it takes; only some steps are timed, nothing is written",
    )
    return parser


def start_log(file: Path | None) -> None:
    """Log lines with the time to stdout and, if one is given, to the end of a file."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if file is not None:
        file = as_path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)


def terminated(*_: object) -> None:
    """End with an exception, so that cleanup code still runs."""
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    sys.exit(main())
