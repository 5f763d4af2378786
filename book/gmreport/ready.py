"""Check that the book can be built, before it is built:

    python -m gmreport.ready book

Exit status: 0 it can; 1 it cannot, and one sentence says what to do.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LINKS = ("_config.yml", "_toc.yml", "notebooks")


def problem(book: Path) -> str | None:
    """Why a folder cannot be built as a book, and what to do about it; None if it can."""
    for name in LINKS:
        link, target = book / name, book.parent / name
        is_there = link.is_dir() if target.is_dir() else link.is_file() and link.read_bytes() == target.read_bytes()
        if not is_there:  # without links a ZIP has files that hold the path of the target
            return (
                f"{link} is no link to {target.name}, because this copy of the repository was made without symbolic "
                "links, as by some ZIP programs: run `make links`, or clone the repository with git"
            )
    try:
        found = version("jupyter-book")
    except PackageNotFoundError:
        return "jupyter-book is not installed here: run `make setup`, or pip install 'jupyter-book<2'"
    if found.split(".")[0] != "1":
        return f"jupyter-book {found} does not read _config.yml and _toc.yml: pip install 'jupyter-book<2'"
    return None


if __name__ == "__main__":
    sys.exit(problem(Path(sys.argv[1] if len(sys.argv) > 1 else "book")))
