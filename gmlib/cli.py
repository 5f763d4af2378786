"""The command `gmlib`: condense a data set, and evaluate a condensed set, from the shell.

    gmlib condense digits --ipc 1 --method MD --budget smoke --out set.safetensors
    gmlib evaluate set.safetensors --data digits --networks 5

Exit status: 0 done; 1 failed on the way; 2 bad input; 130 interrupted, condense continues when run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .condensation import Diverged, condense
from .datasets import load_data
from .evaluation import evaluate
from .recipe import BUDGETS, METHODS, Recipe
from .runs.shipped import read_changes
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
        options.run(options)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        return _failed(2, error)
    except (Diverged, OSError) as error:
        return _failed(1, error)
    except KeyboardInterrupt:
        return _failed(130, "interrupted: run the same command again; condense continues from its last checkpoint")
    return 0


def _failed(status: int, reason: object) -> int:
    print(f"gmlib: {reason}", file=sys.stderr)
    return status


def _condense(options: argparse.Namespace) -> None:
    if options.out.is_dir() or not options.out.parent.is_dir():
        raise ValueError(f"the set cannot be written to {options.out}: name a file in a folder that exists")
    data = _data(options)
    changes = read_changes(options.change, fixed=("dataset", "ipc", "seed"))
    recipe = Recipe.for_method(options.method, data.name, options.ipc, options.budget, options.seed, **changes)
    checkpoint = options.out.with_name(f"{options.out.name}.checkpoint")
    S = condense(data, recipe, options.device, checkpoint, not options.quiet)
    S.save(options.out)
    checkpoint.unlink(missing_ok=True)
    print(f"{options.out}: {S!r}, matching loss {S.history[-1]['loss']:.4g}")


def _evaluate(options: argparse.Namespace) -> None:
    S = SyntheticSet.load(options.set)
    data = _data(options)
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


def _data(options: argparse.Namespace) -> Any:
    return load_data(options.data, data_dir=options.data_dir, size=options.size, progress=not options.quiet)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "gmlib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--seed", type=int, default=0, help="default: 0")
    common.add_argument("--data-dir", type=Path, help="folder of the data sets; default: GMLIB_DATA, else ./data")
    common.add_argument("--size", type=int, help="imagefolder and TinyImageNet: resize images to this square")
    common.add_argument("--device", help="default: a GPU if there is one, else the CPU")
    common.add_argument("--quiet", action="store_true", help="show no progress bar")

    condensing = commands.add_parser("condense", parents=[common], help="learn a few images per class of a data set")
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
        "evaluate", parents=[common], help="train networks on a set, test them on real images"
    )
    testing.add_argument("set", type=Path, metavar="SET", help="a set that gmlib saved")
    testing.add_argument("--data", required=True, help="the data set it was made from")
    testing.add_argument("--network", default="convnet", help="default: convnet, of the size the set was made with")
    testing.add_argument("--networks", type=int, default=50, metavar="N", help="how many; default: 50")
    testing.add_argument("--epochs", type=int, help="default: the paper's protocol")
    testing.set_defaults(run=_evaluate)
    return parser


if __name__ == "__main__":
    sys.exit(main())
