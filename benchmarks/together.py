"""Seconds per outer iteration of ten methods, made together and one after another, in float32 and in bfloat16:

    OMP_NUM_THREADS=1 python benchmarks/together.py --out runs/together.json

Every figure is of whole processes: one runs few outer iterations, another one more, and the difference counts.
So start-up, data and compilation drop out. The kinds take turns, and a round has one process of each kind and length.
Run nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

import gmlib as gm
from gmlib.checks import check_number
from gmlib.files import write_atomically
from gmlib.runs.provenance import environment
from gmlib.runtime import device_of

# The methods of Tables 1 and 2 with one image per class.
METHODS = (
    "DC", "Inter", "Interleaved", "M", "MD", "multi,d2,fixed", "multi,d3,fixed", "multi,100*d4,fixed",
    "multi,d1+d3,fixed", "multi,d1+100*d4,fixed",
)  # fmt: skip
KINDS = [(way, precision) for way in ("apart", "together") for precision in ("float32", "bf16")]


def condense(way: str, precision: str, outer_loops: int, width: int, batch_real: int) -> None:
    """What is timed: ten sets of random grey 28x28 images in the sizes of the paper's protocol."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(10).repeat_interleave(batch_real)
    x = torch.rand(len(y), 1, 28, 28, generator=rng)
    data = gm.Data.from_arrays("random", x, y, x[:10], y[:10])
    sizes = {"outer_loops": outer_loops, "width": width, "batch_real": batch_real}
    recipes = [gm.Recipe.for_method(m, "random", 1, precision=precision, **sizes) for m in METHODS]
    if way == "together":
        gm.condense_together(data, recipes, progress=False)
    else:
        for recipe in recipes:
            gm.condense(data, recipe, progress=False)


def measure(rounds: int, loops: tuple[int, int], width: int, batch_real: int) -> dict[str, Any]:
    """Run the processes of all rounds. Returns the content of the file, in plain JSON types."""
    found: dict[str, list[float]] = {}
    for r in range(rounds):
        for way, precision in KINDS[r % len(KINDS) :] + KINDS[: r % len(KINDS)]:
            seconds = []
            for outer_loops in loops:
                words = [
                    sys.executable,
                    __file__,
                    "--one",
                    way,
                    precision,
                    *map(str, (outer_loops, width, batch_real)),
                ]
                started = time.perf_counter()
                subprocess.run(words, check=True)
                seconds.append(time.perf_counter() - started)
            per_iteration = (seconds[1] - seconds[0]) / (loops[1] - loops[0])
            found.setdefault(f"{way}, {precision}", []).append(per_iteration)
            print(
                f"round {r + 1} of {rounds}: {way}, {precision}: {per_iteration:.2f} s per outer iteration",
                flush=True,
            )
    medians = {kind: median(seconds) for kind, seconds in found.items()}
    slowest = medians["apart, float32"]
    return {
        "methods": list(METHODS),
        "images": f"random, 10 classes of 1x28x28, {batch_real} real images per class, ConvNet-3-{width}",
        "outer_loops": list(loops),
        "seconds": found,
        "median": medians,
        "times_as_fast": {kind: slowest / seconds for kind, seconds in medians.items()},
        **environment(device_of(None)),
    }


def main() -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/together.json"), help="default: runs/together.json")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to check that it runs")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way, precision, *numbers = given.one
        condense(way, precision, *map(int, numbers))
        return 0
    try:
        check_number("rounds", given.rounds, least=1, whole=True)
    except ValueError as error:
        print(f"together: {error}", file=sys.stderr)
        return 2
    loops, width, batch_real = ((1, 3), 8, 8) if given.quick else ((1, 2), 128, 256)
    content = measure(given.rounds, loops, width, batch_real)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, (json.dumps(content, indent=1) + "\n").encode())
    for kind, ratio in content["times_as_fast"].items():
        print(f"{kind}: {content['median'][kind]:.2f} s, {ratio:.2f} times as fast as apart in float32")
    return 0


if __name__ == "__main__":
    sys.exit(main())
