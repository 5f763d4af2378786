"""Run every notebook twice as a batch job, on the smoke budget: `python tests/check_notebooks.py build/papermill`.

Two notebooks run at a time, with one thread each. Those that measure time run alone at the end. The second round may
compute nothing: the files under runs/smoke must not change.

Exit status: 0 all is well; 1 a notebook failed, or the second round changed a file.
"""

import os
import subprocess
import sys
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALONE = ["efficiency"]
# The longest notebooks start first, so that both processes end at about the same time.
LONG = ["comparison", "what", "hypothesis", "where"]


def run(name: str, folder: Path) -> tuple[int, float]:
    """Run a notebook; return its exit status and seconds. What it prints goes to a log in `folder`."""
    start = time.monotonic()
    arguments = [f"notebooks/{name}.md", str(folder / f"{name}.ipynb"), "-p", "budget", "smoke"]
    command = [sys.executable, "-m", "gmreport.batch", *arguments]
    with (folder / f"{name}.log").open("w") as log:
        job = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return job.returncode, time.monotonic() - start


def run_all(names: list[str], folder: Path, alone: Collection[str] = ()) -> float:
    """Run notebooks, two at a time but for those alone; return the seconds. The first failure ends the program."""

    def one(name: str) -> None:
        status, seconds = run(name, folder)
        print(f"{name}: {seconds:.0f} s" + (f", failed with status {status}" if status else ""), flush=True)
        if status:
            print((folder / f"{name}.log").read_text()[-3000:], flush=True)
            os._exit(1)

    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, [name for name in names if name not in alone]))
    for name in alone:
        one(name)
    return time.monotonic() - start


def stored() -> dict[str, tuple[int, int]]:
    """Size and time of change of every file under runs/smoke. The locks of folders are left out."""
    files = [path for path in (ROOT / "runs" / "smoke").rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(ROOT)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    found = [path.stem for path in sorted((ROOT / "notebooks").glob("*.md"))]
    names = LONG + [name for name in found if name not in LONG]
    seconds = run_all(names, folder, ALONE)
    before = stored()
    print(f"{len(names)} notebooks in {seconds:.0f} s; now again, from the stored results:", flush=True)
    print(f"{run_all(names, folder):.0f} s")
    after = stored()
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    for name in changed:
        print(f"changed by the second round: {name}")
    return int(bool(changed) or not before)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
