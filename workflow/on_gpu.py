"""The parts of on_gpu.sh that need Python. It calls them by name:

    python3 on_gpu.py missing bench tables           packages that these stages lack, in one sentence; exit status 2
    python3 on_gpu.py about COMMIT                   the machine, the versions and the packages
    python3 on_gpu.py tables CELLS DATA OPTION ...   `gmlib run` for the data sets that are in the folder DATA

`missing` runs without any package.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, metadata
from importlib.util import find_spec

SKIPPED = 75  # exit status: there are no data
# What a stage imports, besides what `import gmlib` does. Names of imports, and of the packages if they differ.
GMLIB = ("torch", "numpy", "safetensors", "msgspec", "tqdm")
TESTS = ("pytest", "PIL", "scipy", "sklearn", "pandas")
NEEDED = {
    "about": ("torch",),
    "tests": (*GMLIB, *TESTS),
    "hours": (*GMLIB, "pandas"),
    "tables": (*GMLIB, "tyro", "docstring_parser", "torchvision"),
    "failing": (*GMLIB, *TESTS),
}
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "docstring_parser": "docstring-parser"}
# These load quickly, and may have been brought for another version of Python. So it is tried.
LIGHT = {"numpy", "safetensors", "msgspec", "tqdm", "tyro", "docstring_parser"}


def missing(*stages: str) -> int:
    """Say what cannot be imported, and how to bring it. Only light packages are imported: the others take seconds."""
    lacking: dict[str, list[str]] = {}
    for stage in stages:
        for name in NEEDED.get(stage, GMLIB):
            if not _is_there(name):
                lacking.setdefault(name, []).append(stage)
    if not lacking:
        return 0
    of = "; ".join(f"{name} ({', '.join(stages)})" for name, stages in lacking.items())
    install = " ".join(PACKAGES.get(name, name) for name in lacking)
    version = ".".join(map(str, sys.version_info[:2]))
    print(
        f"on_gpu: {sys.executable} cannot import {of}: on a machine with internet run `python3 -m pip install "
        f"--target site --only-binary=:all: --python-version {version} {install}`, bring the folder site and give "
        "SITE=site, or name other stages",
        file=sys.stderr,
    )
    return 2


def _is_there(name: str) -> bool:
    try:
        if name in LIGHT:
            import_module(name)
    except ImportError:
        return False
    return find_spec(name) is not None


def about(commit: str) -> int:
    """Print what computes here."""
    import torch

    print(f"commit {commit or 'unknown'}", flush=True)
    try:
        subprocess.run(["nvidia-smi"], check=False)
    except OSError:
        print("no command nvidia-smi")
    print(f"Python {sys.version}\ntorch {torch.__version__} for CUDA {torch.version.cuda}")
    print(f"cuDNN {torch.backends.cudnn.version()}, {torch.get_num_threads()} CPU threads")
    for n in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(n)
        print(f"GPU {n}: {of.name}, {of.total_memory / 2**30:.0f} GiB, {of.multi_processor_count} multiprocessors")
    if not torch.cuda.is_available():
        print("no GPU that torch can use")
    found = {f"{package.metadata['Name']} {package.version}" for package in metadata.distributions()}
    print(*sorted(found, key=str.lower), sep="\n")
    return 0


def tables(cells: str, folder: str, *options: str) -> int:
    """Do the cells whose data are there. Nothing is downloaded, and what cannot be read costs its own cells only."""
    from gmlib import cli, load_data
    from gmlib.runs.cells import read_lines

    names = dict.fromkeys(name for line in read_lines(cells) for name in line.datasets)
    there, lacking = [], []
    for name in names:
        try:
            load_data(name, data_dir=folder, download=False, progress=False)
            there.append(name)
        except FileNotFoundError:
            lacking.append(name)
        except ValueError as error:
            print(f"on_gpu: {error}; its cells are left out", flush=True)
    if not there:
        print(f"on_gpu: the stage is skipped, since DATA={folder} has none of {', '.join(names)}")
        return SKIPPED
    if lacking:
        print(f"on_gpu: cells of {', '.join(lacking)} are left out, since DATA={folder} lacks these data", flush=True)
    return cli.main(["run", "--cells", cells, "--data-dir", folder, "--datasets", *there, *options])


if __name__ == "__main__":
    sys.exit({"missing": missing, "about": about, "tables": tables}[sys.argv[1]](*sys.argv[2:]))
