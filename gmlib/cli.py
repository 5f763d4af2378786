"""The command `gmlib`: condense a data set, evaluate a condensed set, and make cells of tables, from the shell.

    gmlib condense digits --ipc 1 --method MD --budget smoke --out set.safetensors
    gmlib evaluate set.safetensors --data digits --networks 5
    gmlib run --cells cells.csv --budget lite --time-budget 3600

Exit status: 0 done; 1 failed on the way; 2 bad input; 3 run only: the time budget was used up, run again to continue;
130 interrupted, condense and run continue when run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from .checks import check_number
from .condensation import Diverged, condense
from .data import Data
from .datasets import load_data
from .evaluation import evaluate
from .files import check_tensor_path
from .recipe import BUDGETS, METHODS, Recipe
from .runs.cells import do_cells, plan_cells, read_cells
from .runs.shipped import DTYPE, folder, read_changes
from .runtime import deadline_in, device_of
from .sets import SyntheticSet


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
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        return _failed(2, error)
    except (Diverged, OSError) as error:
        return _failed(1, error)
    except KeyboardInterrupt:
        return _failed(130, "interrupted: run the same command again; condense and run continue where they were")


def _failed(status: int, reason: object) -> int:
    print(f"gmlib: {reason}", file=sys.stderr)
    return status


def _condense(options: argparse.Namespace) -> int:
    out = check_tensor_path(options.out)
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"the set cannot be written to {out}: name a file in a folder that exists")
    data = _data(options, options.data)
    changes = read_changes(options.change, fixed=("dataset", "ipc", "seed"))
    recipe = Recipe.for_method(options.method, data.name, options.ipc, options.budget, options.seed, **changes)
    checkpoint = out.with_name(f"{out.stem}-checkpoint.safetensors")
    S = condense(data, recipe, options.device, checkpoint, not options.quiet)
    S.save(out)
    checkpoint.unlink(missing_ok=True)
    print(f"{out}: {S!r}, matching loss {S.history[-1]['loss']:.4g}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    S = SyntheticSet.load(options.set)
    data = _data(options, options.data)
    found = evaluate(
        S,
        data,
        options.network,
        options.networks,
        options.seed,
        device=options.device,
        progress=not options.quiet,
        epochs=options.epochs,
    )
    print(f"{options.network}: {found}")
    return 0


def _run(options: argparse.Namespace) -> int:
    device, deadline = device_of(options.device), deadline_in(options.time_budget)
    if options.threads is not None:
        check_number("threads", options.threads, least=1, whole=True)
        torch.set_num_threads(options.threads)
    cells = read_cells(options.cells)
    jobs = plan_cells(
        cells,
        partial(_data, options),
        budget=options.budget,
        networks=options.networks,
        precision=options.precision,
        results_dir=folder(options.budget, options.results_dir),
        dtype=DTYPE,
    )
    left, failed = do_cells(cells, jobs, device=device, progress=not options.quiet, deadline=deadline)
    status = 0
    for sentence in failed:
        status = _failed(1, sentence)
    if left:
        advice = "run again to continue"
        status = _failed(3, f"the time budget is used up and {left} of {len(cells)} cells are left: {advice}")
    return status


def _data(options: argparse.Namespace, name: str, download: bool = True) -> Data:
    progress = not options.quiet
    return load_data(name, data_dir=options.data_dir, download=download, size=options.size, progress=progress)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "gmlib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data-dir", type=Path, help="folder of the data sets; default: GMLIB_DATA, else ./data")
    common.add_argument("--size", type=int, help="imagefolder and TinyImageNet: resize images to this square")
    common.add_argument("--device", help="default: a GPU if there is one, else the CPU")
    common.add_argument("--quiet", action="store_true", help="show no progress bar")

    seeded = argparse.ArgumentParser(add_help=False, parents=[common])
    seeded.add_argument("--seed", type=int, default=0, help="default: 0")

    condensing = commands.add_parser("condense", parents=[seeded], help="learn a few images per class of a data set")
    condensing.add_argument("data", metavar="DATA", help='a name such as digits or MNIST, or "imagefolder:PATH"')
    condensing.add_argument("--out", type=Path, required=True, metavar="FILE", help="the set, as safetensors")
    condensing.add_argument("--ipc", type=int, default=1, help="images per class; default: 1")
    condensing.add_argument("--method", default="MDA", help=f"{', '.join(METHODS)}, or what,how,where; default: MDA")
    condensing.add_argument("--budget", default="paper", help=f"one of {', '.join(BUDGETS)}; default: paper")
    condensing.add_argument(
        "--set",
        dest="change",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the recipe to change; may be repeated",
    )
    condensing.set_defaults(run=_condense)

    testing = commands.add_parser(
        "evaluate", parents=[seeded], help="train networks on a set, test them on real images"
    )
    testing.add_argument("set", type=Path, metavar="SET", help="a set that gmlib saved")
    testing.add_argument("--data", required=True, help="the data set it was made from")
    testing.add_argument("--network", default="convnet", help="default: convnet, of the size the set was made with")
    testing.add_argument("--networks", type=int, default=50, metavar="N", help="how many; default: 50")
    testing.add_argument("--epochs", type=int, help="default: the paper's protocol")
    testing.set_defaults(run=_evaluate)

    running = commands.add_parser(
        "run", parents=[common], help="make cells of the paper's tables: sets, and networks trained on them"
    )
    cells = "a CSV with the columns dataset, ipc, method, seed and perhaps targets"
    running.add_argument("--cells", type=Path, required=True, metavar="FILE", help=cells)
    running.add_argument("--budget", default="paper", help=f"one of {', '.join(BUDGETS)}; default: paper")
    running.add_argument("--networks", type=int, metavar="N", help="for each set; default: the budget's number")
    running.add_argument("--precision", default="auto", help="of the pass over real images; default: auto")
    running.add_argument("--results-dir", type=Path, help="default: results/, as for workflow/campaign.py")
    running.add_argument("--time-budget", type=float, metavar="SECONDS", help="stop after this time")
    running.add_argument("--threads", type=int, help="CPU threads; default: as PyTorch chooses")
    running.set_defaults(run=_run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
