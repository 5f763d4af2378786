"""Measure the library beside a plain implementation and the ceiling of the machine, in one process and one run:

    python benchmarks/bench.py                                # every case that fits into the time a case has
    python benchmarks/bench.py --cases 'step/*' 'test/*' --repeats 5 --seconds 600 --out step.json
    python benchmarks/bench.py --seconds-total 480            # some minutes of it; run again to go on
    python benchmarks/bench.py --quick                        # toy sizes, to see that everything runs

README.md beside this file says what the cases and the columns are. Exit status: 0 done, or the total time was used up; 1 FILE
could not be written; 2 bad input, nothing was measured; 130 interrupted, FILE holds the cases that were done.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any

import ceiling
import heap
import torch
from cases import PLANS, Pair, cases
from ceiling import Machine, clock

from gmlib.checks import check_number, choose
from gmlib.files import write_atomically
from gmlib.runs.provenance import environment
from gmlib.runtime import device_of
from gmlib.speed.memory import PeakMemory
from gmlib.speed.precision import matmul_precision

Prepare = Callable[[torch.device], Pair]
SIDES = ("ours", "plain")

# ---- measuring --------------------------------------------------------------------------------------------


def measure(
    prepare: Prepare,
    device: torch.device,
    machine: Machine,
    *,
    repeats: int,
    seconds: float,
    precision: str = "float32",
) -> dict[str, Any]:
    """Time both sides of a case in turn, `repeats` times or as often as fits into `seconds`, once at least.

    The first call of each side (`Pair.untimed`) does not count; it tells how long a call takes, and its peak memory. Returns
    plain JSON types. For a case whose two sides cannot be called once in `seconds`, or not in the memory there is, "not_run"
    says why; for one that ends with an error "failed" does.
    """
    doing = "the preparation"
    try:
        pair = prepare(device)
        least = pair.calls.seconds(machine, precision)
        if least > seconds:
            return {
                "unit": pair.unit,
                "not_run": f"would take about {(pair.untimed + repeats) * least:.0f} s or more",
            }
        untimed, peaks = {}, {}
        for doing in SIDES:
            with heap.of(doing, device):
                peak = PeakMemory(device)
                untimed[doing] = clock(
                    device, lambda side=doing: [getattr(pair, side)() for _ in range(pair.untimed)]
                )
                peaks[doing] = peak()
        once = sum(untimed.values()) / pair.untimed
        if once > seconds:
            return {"unit": pair.unit, "not_run": f"would take about {(pair.untimed + repeats) * once:.0f} s"}
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for r in range(max(1, min(repeats, int(seconds / once)))):
            for doing in SIDES if r % 2 else SIDES[::-1]:
                with heap.of(doing, device):
                    times[doing].append(getattr(pair, doing)())
    except torch.OutOfMemoryError:
        return {"not_run": f"{doing} ran out of memory"}
    except Exception as error:  # whatever it is, the other cases can be measured still
        return {"failed": f"{doing}: {_in_a_line(error)}"}
    ours, beside, best = median(times["ours"]), median(times["plain"]), pair.work.seconds(machine, precision)
    return {
        "unit": pair.unit, "repeats": len(times["ours"]), "plain": beside, "ours": ours, "ratio": beside / ours,
        "ceiling": best, "fraction_of_ceiling": best / ours, "flops": pair.work.flops, "bytes": pair.work.bytes,
        **{f"seconds_{side}": each for side, each in times.items()},
        "calls_untimed": pair.untimed, **{f"seconds_untimed_{side}": each for side, each in untimed.items()},
        **{f"peak_memory_bytes_{side}": None if each != each else each for side, each in peaks.items()},  # NaN: not known
    }  # fmt: skip


def _in_a_line(error: Exception) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}"[:200]


HEADER = "{:<46} {:>11} {:>11} {:>7} {:>8} {:>9} {:>9} {:>3}  {}".format(
    "case", "plain s", "ours s", "ratio", "ceiling", "MB ours", "MB plain", "n", "unit"
)


def row(name: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    for word, key in (("not run", "not_run"), ("failed", "failed")):
        if key in found:
            return f"{name:<46} {word}: {found[key]}"
    held = [found[f"peak_memory_bytes_{side}"] for side in SIDES]
    ours, beside = ("?" if bytes_ is None else f"{bytes_ / 1e6:.1f}" for bytes_ in held)
    return (
        f"{name:<46} {found['plain']:>11.4g} {found['ours']:>11.4g} {found['ratio']:>7.2f} "
        f"{found['fraction_of_ceiling']:>8.1%} {ours:>9} {beside:>9} {found['repeats']:>3}  {found['unit']}"
    )


# ---- the file ---------------------------------------------------------------------------------------------


def stored_in(path: Path, made_with: dict[str, dict[str, Any]], again: bool) -> dict[str, Any]:
    """What a file holds, to go on with it, or the beginning of a new one.

    made_with: the "environment" and the "settings" of this run. Raises ValueError where the file was made with others, unless
    it may be made again.
    """
    new = {**made_with, "runs": [], "cases": {}}
    if not path.is_file():
        return new
    try:
        stored = json.loads(path.read_text())
        known = all(isinstance(stored[key], type(value)) for key, value in new.items())
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"{path} is no file of benchmarks, or a damaged one: give another --out, or delete it")
    for part, asked in made_with.items():
        for name in asked:
            found = stored[part].get(name)
            if found != asked[name] and again:
                return new
            if found != asked[name]:
                said = f"{path} was measured with {name}={found!r} and not {asked[name]!r}"
                raise ValueError(f"{said}: give another --out, or --again to begin it anew")
    return stored


# ---- a run ------------------------------------------------------------------------------------------------


def run(
    *patterns: str,
    repeats: int = 3,
    seconds: float = 120.0,
    seconds_total: float | None = None,
    out: str | os.PathLike | None = None,
    again: bool = False,
    quick: bool = False,
    device: torch.device | str | None = None,
    tf32: bool = False,
) -> dict[str, Any]:
    """Measure the cases whose name fits one of `patterns`, print the table, and store all of it in `out` after every case.

    seconds: that the repeats of one case may take. seconds_total: no case is begun after it. What `out` holds from before is
    kept and not measured a second time, unless it failed, or `again` or `quick` is given. Returns what is stored. Raises
    ValueError, in one sentence, for input that does not fit, before anything is measured; OSError where `out` cannot be written.
    """
    begun = time.monotonic()
    check_number("repeats", repeats, least=1, whole=True)
    check_number("seconds", seconds, above=0)
    if seconds_total is not None:
        check_number("seconds_total", seconds_total, above=0)
    device = device_of(device)
    choose(ceiling.PRODUCTS, "device", device.type)
    if tf32 and device.type != "cuda":
        raise ValueError(f"TF32 is of CUDA devices, and this is {device}: leave out --tf32")
    precision = "tf32" if tf32 else "float32"
    every = cases(PLANS["quick" if quick else device.type].in_precision(precision))
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in every):
            raise ValueError(f"no case fits {pattern!r}: choose from {', '.join(every)}")
    chosen = [name for name in every if any(fnmatch(name, pattern) for pattern in patterns or ("*",))]
    out = Path(out or f"runs/{'benchmarks-quick' if quick else 'benchmarks'}.json")
    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"the output {out} does not fit: give a file that ends in .json")
    settings = {"repeats": repeats, "seconds": seconds, "quick": quick, "precision": precision}
    made_on = environment(device)
    stored = stored_in(out, {"environment": made_on, "settings": settings}, again or quick)
    known = {name for name in chosen if "failed" not in stored["cases"].get(name, {"failed": ""})}
    left = [name for name in chosen if again or quick or name not in known]

    print(f"{made_on['device_name']}, {made_on['threads']} threads, torch {made_on['torch']}, {precision}")
    if left:
        machine = ceiling.measure(device, 0.01 if quick else 0.5)
        rates = ", ".join(f"{name} {rate / 1e9:.1f} GFLOP/s" for name, rate in machine.products.items())
        print(f"matrix products: {rates}; copying: {machine.copying / 1e9:.1f} GB/s")
        stored["runs"].append({"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": asdict(machine)})
    print(f"\n{HEADER}", flush=True)
    with matmul_precision(precision):
        for name in chosen:
            if name in left:
                if seconds_total is not None and time.monotonic() - begun > seconds_total:
                    continue
                gc.collect()
                gc.freeze()  # what is there by now stays: the collector need not look through it again before every call
                found = measure(every[name], device, machine, repeats=repeats, seconds=seconds, precision=precision)
                stored["cases"][name] = {**found, "run": len(stored["runs"]) - 1}
                stored["cases"] = {each: stored["cases"][each] for each in every if each in stored["cases"]}
                write_atomically(out, json.dumps(stored, indent=1, allow_nan=False).encode())
                left.remove(name)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            print(row(name, stored["cases"][name]), flush=True)
    print(
        f"\nstored in {out}" + (f"; {len(left)} of {len(chosen)} cases are left: run again to go on" if left else "")
    )
    return stored


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python benchmarks/bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", metavar="GLOB", nargs="+", default=[], help="names, as 'step/*/ipc10' (all)")
    parser.add_argument("--repeats", metavar="N", type=int, default=3, help="timed calls of each side (%(default)s)")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=120.0, help="that one case may take (%(default)s)"
    )
    parser.add_argument("--seconds-total", metavar="S", type=float, help="after which no case is begun (none)")
    parser.add_argument(
        "--out", metavar="FILE", help="a .json file (runs/benchmarks.json, with --quick benchmarks-quick.json)"
    )
    parser.add_argument("--again", action="store_true", help="measure again what FILE holds already")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--device", help="cpu or cuda (CUDA where there is one)")
    parser.add_argument("--tf32", action="store_true", help="TF32 for both sides, on CUDA")
    options = vars(parser.parse_args(arguments))
    try:
        run(*options.pop("cases"), **options)
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
