"""Compare the library with a plain implementation and with the ceiling of the machine, in one process:

    python benchmarks/bench.py                                # all cases that fit into the time per case
    python benchmarks/bench.py --cases 'step/*' 'test/*' --repeats 5 --seconds 600 --out step.json
    python benchmarks/bench.py --seconds-total 480            # for some minutes; run again to continue
    python benchmarks/bench.py --quick                        # toy sizes, to check that everything runs

README.md in this folder describes the cases and the columns. Exit status: 0 done or out of time; 1 FILE could not be
written; 2 bad input, nothing was measured; 130 interrupted, FILE holds the finished cases.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatch
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import ceiling
import heap
import torch
from cases import PLANS, Prepare, cases
from ceiling import Machine, clock

from gmlib.checks import check_number, choose
from gmlib.files import write_atomically
from gmlib.runs.provenance import environment
from gmlib.runtime import device_of
from gmlib.speed import forward
from gmlib.speed.memory import PeakMemory
from gmlib.speed.precision import matmul_precision

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
    """Time both sides of a case in turn, ``repeats`` times or as often as fits into ``seconds``, but at least once.

    The first ``Pair.untimed`` calls of each side are not timed. They show how long a call takes, and its peak memory.

    Returns
    -------
    dict
        Plain JSON types. "not_run" gives the reason if both sides do not fit into the time or the memory, "failed"
        if the case raised an error.
    """
    doing = "the preparation"
    try:
        pair = prepare(device)
        least = pair.calls.seconds(machine, precision)
        calls = pair.untimed + repeats
        if least > seconds:
            return {"unit": pair.unit, "not_run": f"would take about {calls * least:.0f} s or more"}
        untimed, peaks = {}, {}
        for doing in SIDES:
            with heap.settings_of(doing, device):
                peak = PeakMemory(device)
                call = getattr(pair, doing)
                untimed[doing] = clock(device, lambda call=call: [call() for _ in range(pair.untimed)])
                peaks[doing] = peak()
        once = sum(untimed.values()) / pair.untimed
        if once > seconds:
            return {"unit": pair.unit, "not_run": f"would take about {calls * once:.0f} s"}
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for r in range(max(1, min(repeats, int(seconds / once)))):
            for doing in SIDES if r % 2 else SIDES[::-1]:
                with heap.settings_of(doing, device):
                    times[doing].append(getattr(pair, doing)())
    except torch.OutOfMemoryError:
        return {"not_run": f"{doing} ran out of memory"}
    except Exception as error:  # the other cases can still be measured
        return {"failed": f"{doing}: {_first_line(error)}"}
    ours, plain = median(times["ours"]), median(times["plain"])
    best = pair.work.seconds(machine, precision)
    return {
        "unit": pair.unit, "repeats": len(times["ours"]), "plain": plain, "ours": ours, "ratio": plain / ours,
        "ceiling": best, "fraction_of_ceiling": best / ours, "flops": pair.work.flops, "bytes": pair.work.bytes,
        **{f"seconds_{side}": each for side, each in times.items()},
        "calls_untimed": pair.untimed, **{f"seconds_untimed_{side}": each for side, each in untimed.items()},
        **{f"peak_memory_bytes_{side}": None if isnan(each) else each for side, each in peaks.items()},
    }  # fmt: skip


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"[:200]


LAYOUTS = ("nchw", "nhwc")  # of --fused
HEADER = "{:<46} {:>11} {:>11} {:>7} {:>8} {:>9} {:>9} {:>3}  {}".format(
    "case", "plain s", "ours s", "ratio", "ceiling", "MB ours", "MB plain", "n", "unit"
)


def row(name: str, found: dict[str, Any]) -> str:
    """One line of the table: a case and its result from `measure`."""
    for word, key in (("not run", "not_run"), ("failed", "failed")):
        if key in found:
            return f"{name:<46} {word}: {found[key]}"
    peaks = [found[f"peak_memory_bytes_{side}"] for side in SIDES]
    ours, plain = ("?" if peak is None else f"{peak / 1e6:.1f}" for peak in peaks)
    return (
        f"{name:<46} {found['plain']:>11.4g} {found['ours']:>11.4g} {found['ratio']:>7.2f} "
        f"{found['fraction_of_ceiling']:>8.1%} {ours:>9} {plain:>9} {found['repeats']:>3}  {found['unit']}"
    )


# ---- the file ---------------------------------------------------------------------------------------------


def stored_in(path: Path, made_with: dict[str, dict[str, Any]], again: bool) -> dict[str, Any]:
    """Return the content of a file to continue with, or that of a new file.

    Parameters
    ----------
    path : Path
    made_with : dict
        "environment" and "settings" of this run.
    again : bool
        Start a new file if the old one was made with other settings.

    Raises
    ------
    ValueError
        If the file is damaged, or was made with other settings and ``again`` is False.
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
        raise ValueError(f"{path} is not a file of benchmarks, or damaged: give another --out or delete it")
    for part, asked in made_with.items():
        for name in asked:
            found = stored[part].get(name)
            same = (found or None) == (asked[name] or None)  # older files have no "fused", or False
            if not same and again:
                return new
            if not same:
                reason = f"{path} was measured with {name}={found!r} and not {asked[name]!r}"
                raise ValueError(f"{reason}: give another --out, or --again to start it over")
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
    fused: str | None = None,
) -> dict[str, Any]:
    """Measure the cases that match one of ``patterns``, print the table, and store it in ``out`` after every case.

    Parameters
    ----------
    *patterns : str
        Names or globs; none for all cases.
    repeats : int
        Timed calls of each side.
    seconds : float
        Time for the repeats of one case.
    seconds_total : float, optional
        No case begins after this time.
    out : path, optional
        A .json file. Cases in it are not measured again unless they failed.
    again, quick : bool
        Measure all cases again; use toy sizes (which implies again).
    device : torch.device or str, optional
    tf32 : bool
        TF32 for both sides.
    fused : {"nchw", "nhwc"}, optional
        The library's forward pass by `gmlib.speed.kernels` with this layout of feature maps, on CUDA.

    Returns
    -------
    dict
        What is stored.

    Raises
    ------
    ValueError
        For bad input, before anything is measured.
    OSError
        If ``out`` cannot be written.
    """
    started = time.monotonic()
    check_number("repeats", repeats, least=1, whole=True)
    check_number("seconds", seconds, above=0)
    if seconds_total is not None:
        check_number("seconds_total", seconds_total, above=0)
    device = device_of(device)
    choose(ceiling.PRODUCTS, "device", device.type)
    if tf32 and device.type != "cuda":
        raise ValueError(f"only CUDA devices have TF32, and this is {device}: leave out --tf32")
    if fused is not None:
        choose(dict.fromkeys(LAYOUTS), "layout", fused)
        if device.type != "cuda":
            raise ValueError(f"the kernels are for CUDA, and this is {device}: leave out --fused")
    precision = "tf32" if tf32 else "float32"
    every = cases(PLANS["quick" if quick else device.type].in_precision(precision))
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in every):
            raise ValueError(f"no case matches {pattern!r}: choose from {', '.join(every)}")
    chosen = [name for name in every if any(fnmatch(name, pattern) for pattern in patterns or ("*",))]
    out = Path(out or f"runs/{'benchmarks-quick' if quick else 'benchmarks'}.json")
    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"the output {out} is not a .json file: give one")
    settings = {"repeats": repeats, "seconds": seconds, "quick": quick, "precision": precision, "fused": fused}
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
    with matmul_precision(precision), patch.object(forward, "FUSED", fused or forward.FUSED):
        for name in chosen:
            if name in left:
                if seconds_total is not None and time.monotonic() - started > seconds_total:
                    continue
                gc.collect()
                gc.freeze()  # saves the collector from looking through all of this before every call
                found = measure(every[name], device, machine, repeats=repeats, seconds=seconds, precision=precision)
                stored["cases"][name] = {**found, "run": len(stored["runs"]) - 1}
                stored["cases"] = {each: stored["cases"][each] for each in every if each in stored["cases"]}
                write_atomically(out, json.dumps(stored, indent=1, allow_nan=False).encode())
                left.remove(name)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            print(row(name, stored["cases"][name]), flush=True)
    print(f"\nstored in {out}" + (f"; {len(left)} of {len(chosen)} cases are left: run again" if left else ""))
    return stored


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python benchmarks/bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", metavar="GLOB", nargs="+", default=[], help="names, such as 'step/*/ipc10' (all)")
    parser.add_argument("--repeats", metavar="N", type=int, default=3, help="timed calls of each side (%(default)s)")
    parser.add_argument("--seconds", metavar="S", type=float, default=120.0, help="time per case (%(default)s)")
    parser.add_argument("--seconds-total", metavar="S", type=float, help="no case begins after this time (none)")
    parser.add_argument(
        "--out", metavar="FILE", help="a .json file (runs/benchmarks.json, with --quick benchmarks-quick.json)"
    )
    parser.add_argument("--again", action="store_true", help="measure cases again that are in FILE")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to check that everything runs")
    parser.add_argument("--device", help="cpu or cuda (cuda if there is one)")
    parser.add_argument("--tf32", action="store_true", help="TF32 for both sides, on CUDA")
    parser.add_argument(
        "--fused",
        choices=LAYOUTS,
        help="norm, ReLU and pool of the library in one kernel, on CUDA, with this layout",
    )
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
