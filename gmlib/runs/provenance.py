"""The versions, commit, device and threads that a number may depend on besides its recipe."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..checks import as_list

HOME = Path(__file__).resolve().parents[2]  # the repository, if gmlib is used from a checkout
# Where runs/ and results/ are: the repository, or the working directory if gmlib is used outside a checkout.
PLACE = HOME if (HOME / "pyproject.toml").is_file() else Path()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit, device and threads, in plain JSON types."""
    from .. import __version__

    return {
        "gmlib": __version__,
        "commit": _commit(HOME),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
    }


def made_with_here(device: torch.device, before: Mapping[str, Any]) -> dict[str, Any]:
    """`environment`, with the commits and threads of earlier parts of the same work in front of its own.

    "commit" lists several with commas. "threads" is a number, or a list if the parts had different numbers: the same
    seed gives the same bits only for one number of threads.
    """
    here = environment(device)
    commits = [*(before.get("commit") or "").split(", "), here["commit"] or ""]
    threads = list(dict.fromkeys([*as_list(before.get("threads", [])), here["threads"]]))
    return here | {
        "commit": ", ".join(dict.fromkeys(filter(None, commits))) or None,
        "threads": threads[0] if len(threads) == 1 else threads,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache  # the checkout may change during a long run: keep the commit of the loaded code
def _commit(home: Path) -> str | None:
    """Commit of a checkout, with "+" if tracked files outside results/ were changed.

    Outside a checkout it is the value of GMLIB_COMMIT, for a copy without .git; None if that is not set.
    """

    def git(*command: str) -> str:
        run = ["git", "-C", str(home), *command]
        return subprocess.run(run, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    if not (home / ".git").exists():
        return os.environ.get("GMLIB_COMMIT") or None
    try:
        changed = git("diff", "--name-only", "HEAD", "--", ".", ":!results")  # runs write under results/
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
