"""Run every notebook as a batch job on the smoke budget: `python tests/check_notebooks.py build/papermill run`.

Two notebooks run at a time, with one thread each. When they have run once more, as pages of the book, `compare`
instead of `run` says if anything was computed again: the files under runs/smoke must not have changed.

Exit status: 0 all is well; 1 a notebook failed, or a file changed.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STORED = "stored.json"
# The longest notebooks start first, so that both processes end at about the same time. Those that need the same sets
# are not next to each other, because one would wait for the other.
LONG = ["comparison", "where", "efficiency", "what", "architectures", "hypothesis"]


def run(name: str, folder: Path) -> tuple[int, float]:
    """Run a notebook; return its exit status and seconds. What it prints goes to a log in `folder`."""
    start = time.monotonic()
    arguments = [f"notebooks/{name}.md", str(folder / f"{name}.ipynb"), "-p", "budget", "smoke"]
    command = [sys.executable, "-m", "gmreport.batch", *arguments]
    with (folder / f"{name}.log").open("w") as log:
        job = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return job.returncode, time.monotonic() - start


def run_all(names: list[str], folder: Path) -> None:
    """Run notebooks, two at a time. The first failure ends the program."""

    def one(name: str) -> None:
        status, seconds = run(name, folder)
        print(f"{name}: {seconds:.0f} s" + (f", failed with status {status}" if status else ""), flush=True)
        if status:
            print((folder / f"{name}.log").read_text()[-3000:], flush=True)
            os._exit(1)

    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, names))
    print(f"{len(names)} notebooks in {time.monotonic() - start:.0f} s", flush=True)


def stored() -> dict[str, list[int]]:
    """Size and time of change of every file under runs/smoke. The locks of folders are left out."""
    files = [path for path in (ROOT / "runs" / "smoke").rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(ROOT)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def run_and_note(folder: Path) -> int:
    """Run all, and note which files they stored."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [path.stem for path in sorted((ROOT / "notebooks").glob("*.md"))]
    run_all(LONG + [name for name in found if name not in LONG], folder)
    (folder / STORED).write_text(json.dumps(stored()))
    return 0


def compare(folder: Path) -> int:
    """Compare the stored files with those that were noted."""
    before, after = json.loads((folder / STORED).read_text()), stored()
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    for name in changed:
        print(f"changed by the second round: {name}")
    return int(bool(changed) or not before)


if __name__ == "__main__":
    _, path, which = sys.argv
    sys.exit({"run": run_and_note, "compare": compare}[which](Path(path)))
