"""Run every notebook as a batch job on the smoke budget, twice: `python tests/check_notebooks.py build/papermill`.

Two run side by side, one thread each; those that measure time run alone, last. The second time around nothing may be computed:
what the first left under runs/ must stay as it was, to the file. Prints the seconds of each; exits with status 1 when a
notebook failed or worked twice.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALONE = ["efficiency"]
# The longest first, so that neither of the two waits long at the end.
LONG = ["what", "comparison", "hypothesis", "where"]


def run(name: str, folder: Path) -> tuple[int, float]:
    """Exit status and seconds; what the job prints goes to a log beside its output."""
    begun = time.monotonic()
    job = [f"notebooks/{name}.md", str(folder / f"{name}.ipynb"), "-p", "budget", "smoke"]
    command = [sys.executable, "-m", "gmreport.batch", *job]
    with (folder / f"{name}.log").open("w") as log:
        found = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return found.returncode, time.monotonic() - begun


def run_all(names: list[str], folder: Path) -> dict[str, float]:
    """Seconds of each; ends the program where one fails."""
    seconds = {}

    def one(name: str) -> None:
        status, seconds[name] = run(name, folder)
        print(f"{name}: {seconds[name]:.0f} s" + (f", failed with status {status}" if status else ""), flush=True)
        if status:
            print((folder / f"{name}.log").read_text()[-3000:], flush=True)
            os._exit(1)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, [name for name in names if name not in ALONE]))
    for name in ALONE:
        one(name)
    return seconds


def stored() -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file under runs/smoke."""
    files = [path for path in (ROOT / "runs" / "smoke").rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    found = [path.stem for path in sorted((ROOT / "notebooks").glob("*.md"))]
    names = LONG + [name for name in found if name not in LONG]
    begun = time.monotonic()
    run_all(names, folder)
    first, before = time.monotonic() - begun, stored()
    print(f"{len(names)} notebooks in {first:.0f} s; once more, from what they stored:", flush=True)
    begun = time.monotonic()
    run_all(names, folder)
    print(f"{time.monotonic() - begun:.0f} s")
    after = stored()
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    for name in changed:
        print(f"written again by the second run: {name}")
    return int(bool(changed) or not before)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
