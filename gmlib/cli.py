"""The command `gmlib`: condense a data set, and evaluate a condensed set, from the shell.

    gmlib condense digits --ipc 1 --method MD --budget smoke --out set.safetensors
    gmlib evaluate set.safetensors --data digits --networks 5

Exit status: 0 done; 1 failed on the way; 2 bad input, nothing was run; 130 interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .checks import choose
from .condensation import Diverged, condense
from .datasets import load_data
from .evaluation import evaluate, resolve_protocol
from .recipe import BUDGETS, METHODS, Recipe
from .sets import SyntheticSet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        None takes those the process was started with.

    Returns
    -------
    int
        The exit status.
    """
    asked = _parser().parse_args(arguments)
    try:
        asked.run(asked)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        return _failed(2, error)
    except (Diverged, OSError) as error:
        return _failed(1, error)
    except KeyboardInterrupt:
        return _failed(130, "interrupted: the same command goes on from the last checkpoint")
    return 0


def _failed(status: int, reason: object) -> int:
    print(f"gmlib: {reason}", file=sys.stderr)
    return status


def _condense(asked: argparse.Namespace) -> None:
    if asked.out.is_dir() or not asked.out.parent.is_dir():
        raise ValueError(f"the set cannot be written to {asked.out}: name a file in a folder that exists")
    data = _data(asked)
    changes = dict(_change(text) for text in asked.change)
    recipe = Recipe.for_method(asked.method, data.name, asked.ipc, asked.budget, asked.seed, **changes)
    checkpoint = asked.out.with_name(f"{asked.out.name}.checkpoint")
    S = condense(data, recipe, asked.device, checkpoint, not asked.quiet)
    S.save(asked.out)
    checkpoint.unlink(missing_ok=True)
    print(f"{asked.out}: {S!r}, matching loss {S.history[-1]['loss']:.4g}")


def _evaluate(asked: argparse.Namespace) -> None:
    S = SyntheticSet.load(asked.set)
    data = _data(asked)
    resolve_protocol(S, data, asked.network, epochs=asked.epochs)  # bad input is reported before anything is trained
    found = evaluate(
        S,
        data,
        asked.network,
        asked.networks,
        asked.seed,
        device=asked.device,
        progress=not asked.quiet,
        epochs=asked.epochs,
    )
    print(f"{asked.network}: {found}")


def _data(asked: argparse.Namespace) -> Any:
    return load_data(asked.data, data_dir=asked.data_dir, size=asked.size, progress=not asked.quiet)


def _change(text: str) -> tuple[str, Any]:
    """("lr_images", 0.01) from "lr_images=0.01". A value is JSON, else a word."""
    name, equals, value = text.partition("=")
    choose({field.name: None for field in fields(Recipe)}, "recipe field", name)
    if not equals:
        raise ValueError(f"--set {text} has no value: write it as {name}=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


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
        help="a field of the recipe to change, as often as needed",
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
