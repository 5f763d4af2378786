"""Build the wheel and use it outside the checkout: `python tests/check_wheel.py build/wheel`.

A new environment gets the wheel and the packages it needs, and nothing else. The packages are those of this
environment, linked one by one. First without extras: arrays are condensed, a set is saved and loaded, and a missing
extra is named. Then with the extra "data": the first example of the README runs.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from markdown_it import MarkdownIt
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
BARE = """
import subprocess, sys
import numpy as np, gmlib as gm

rng = np.random.default_rng(0)
y = np.arange(40) % 2
x = np.clip(rng.random((40, 8, 8)) * 0.5 + y[:, None, None] * 0.5, 0, 1)
data = gm.Data.from_arrays("mine", x, y, x[:20], y[:20])
recipe = gm.Recipe.for_method("MDA", dataset="mine", ipc=1, budget="smoke", seed=0, outer_loops=3)
S = gm.condense(data, recipe, progress=False)
S.save("set.safetensors")
again = gm.SyntheticSet.load("set.safetensors")
assert (again.images == S.images).all() and len(again.to_dataset()) == 2
print(gm.evaluate(again, data, n_networks=2, epochs=5, progress=False))
for extra, use in {
    "data": lambda: gm.load_data("digits"),
    "analysis": lambda: gm.reach(S, [0.5], n_starts=1, max_steps=1, progress=False),
}.items():
    try:
        use()
    except ModuleNotFoundError as error:
        assert f"gmlib[{extra}]" in str(error), error
    else:
        raise SystemExit(f"the extra {extra} is there, and should not be")
"""


def closure(requirement: str) -> set[str]:
    """The names of a requirement's distribution and all it needs here."""
    found: set[str] = set()
    todo = [Requirement(requirement)]
    while todo:
        asked = todo.pop()
        name = re.sub(r"[-_.]+", "-", asked.name).lower()
        extras = asked.extras or {""}
        if name in found and extras == {""}:
            continue
        found.add(name)
        for text in distribution(name).requires or []:
            needed = Requirement(text)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                try:
                    distribution(needed.name)
                except PackageNotFoundError:  # for another system
                    continue
                todo.append(needed)
    return found


def link(names: set[str], folder: Path) -> None:
    """Put links to the files of these distributions into a folder."""
    folder.mkdir(parents=True)
    site = Path(sysconfig.get_path("purelib"))
    for name in sorted(names):
        for path in distribution(name).files or []:
            top = path.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(site / top)


def environment(folder: Path, wheel: Path, requirement: str) -> Path:
    """A new environment with the wheel and what `requirement` needs; returns its Python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([*command, "--disable-pip-version-check"], check=True)
    link(closure(requirement) - {"gmlib"}, folder / "needs")
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    Path(where.stdout.strip(), "needs.pth").write_text(f"{folder / 'needs'}\n")
    return python


def first_example() -> str:
    """The first Python code block of the README."""
    tokens = MarkdownIt().parse((ROOT / "README.md").read_text())
    return next(token.content for token in tokens if token.type == "fence" and token.info == "python")


def main(folder: Path) -> None:
    for stale in (folder, ROOT / "build" / "lib"):  # a module that was moved would still be packed from there
        shutil.rmtree(stale, ignore_errors=True)
    work = folder.resolve() / "work"
    work.mkdir(parents=True)
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("gmlib-*.whl")
    bare = environment(folder.resolve() / "bare", wheel, "gmlib")
    subprocess.run([bare, "-c", BARE], cwd=work, check=True)
    subprocess.run([bare.with_name("gmlib"), "--help"], cwd=work, check=True, stdout=subprocess.DEVNULL)
    print("the wheel alone condenses arrays, saves and loads a set, and names the extras", flush=True)
    with_data = environment(folder.resolve() / "data", wheel, "gmlib[data]")
    subprocess.run([with_data, "-c", first_example()], cwd=work, check=True)
    print("with the extra data the first example of the README runs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
