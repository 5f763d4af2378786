"""Cells of the paper's tables in a file, and the work of the command `gmlib run`.

The file is a CSV with a header. The column targets, names of networks with spaces between them, may be left out::

    dataset,ipc,method,seed,targets
    MNIST,1,MD,0,
    MNIST,1,MD@lenet,0,convnet lenet
    CIFAR10,1,"multi,d1+100*d4,fixed",1,
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from ..checks import check_number, choose
from ..condensation import Diverged
from ..data import Data
from ..files import as_path
from ..runtime import OutOfTime
from .jobs import Job, choose_recipe, plan_run
from .store import do

NEEDED = ("dataset", "ipc", "method", "seed")
COLUMNS = (*NEEDED, "targets")


@dataclass(frozen=True)
class Cell:
    """One set of a table, and the networks that are trained on it.

    Attributes
    ----------
    dataset : str
    ipc : int
        Images per class.
    method : str
        As `gmlib.runs.store.run` takes it.
    seed : int
    targets : tuple of str or None
        Architectures of the networks; None for the one that the set is made with.
    place : str
        The file and line that it comes from, for messages.
    """

    dataset: str
    ipc: int
    method: str
    seed: int
    targets: tuple[str, ...] | None = None
    place: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.dataset}, IPC {self.ipc}, {self.method}, set {self.seed}"


def read_cells(path: str | os.PathLike) -> list[Cell]:
    """Read the cells in a CSV file, in order.

    Parameters
    ----------
    path : path

    Returns
    -------
    list of Cell

    Raises
    ------
    ValueError
        If the file is no such CSV. The message names the line, and says what to do.
    FileNotFoundError
        If there is no such file.
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: name a CSV with one line for each cell")
    lines: list[tuple[str, list[str]]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, skipinitialspace=True, strict=True)
        try:
            for row in rows:
                if any(row):
                    lines.append((f"{path}, line {rows.line_num}", [value.strip() for value in row]))
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}: write it as CSV") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8: save it as CSV in UTF-8") from error
    if len(lines) < 2:
        raise ValueError(f"{path} holds no cell: give the header {','.join(COLUMNS)} and a line for each cell")
    (place, header), *cells = lines
    with _at(place):
        for name in header:
            choose(dict.fromkeys(COLUMNS), "column", name)
        for name in COLUMNS:
            if header.count(name) != 1 and (name in NEEDED or name in header):
                raise ValueError(f"there are {header.count(name)} columns {name}: give one")
    return [_cell(place, header, values) for place, values in cells]


def _cell(place: str, header: Sequence[str], values: Sequence[str]) -> Cell:
    with _at(place):
        if len(values) != len(header):
            advice = 'give one for each, and write a method with commas as "multi,d1+d3,fixed"'
            raise ValueError(f"there are {len(values)} values for {len(header)} columns: {advice}")
        given = dict(zip(header, values, strict=True))
        targets = tuple(given.get("targets", "").split()) or None
        return Cell(
            given["dataset"],
            _whole("ipc", given["ipc"], 1),
            given["method"],
            _whole("seed", given["seed"], 0),
            targets,
            place,
        )


def _whole(name: str, value: str, least: int) -> int:
    number: Any = int(value) if value.isdecimal() else value
    check_number(name, number, whole=True, least=least)
    return number


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Name the line of a cell in the message of an error."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{place}: {error}") from error


def plan_cells(cells: Sequence[Cell], load: Callable[..., Data], *, budget: str, **options: Any) -> list[Job]:
    """`gmlib.runs.jobs.plan_run` for each cell.

    Parameters
    ----------
    cells : sequence of Cell
    load : callable
        ``load(name, download=True)`` returns the data set. Nothing is downloaded before the names of all data sets
        and methods are checked.
    budget, options
        As in `gmlib.runs.store.run`.

    Returns
    -------
    list of Job

    Raises
    ------
    ValueError
        As `plan_run`, or if a data set cannot be loaded. The message names the line of the cell.
    """
    data: dict[str, Data] = {}
    for cell in cells:
        with _at(cell.place):
            choose_recipe(cell.method, cell.dataset, cell.ipc, budget, cell.seed, {})
            if cell.dataset not in data:
                with suppress(FileNotFoundError):
                    data[cell.dataset] = load(cell.dataset, download=False)
    jobs = []
    for cell in cells:
        with _at(cell.place):
            if cell.dataset not in data:
                data[cell.dataset] = load(cell.dataset)
            what = (data[cell.dataset], cell.method, cell.ipc)
            jobs.append(plan_run(*what, seed=cell.seed, targets=cell.targets, budget=budget, **options))
    return jobs


def do_cells(
    cells: Sequence[Cell],
    jobs: Sequence[Job],
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
) -> tuple[int, list[str]]:
    """Do the cells in order, and print one line for each. Sets that share networks are made together.

    Parameters
    ----------
    cells : sequence of Cell
    jobs : sequence of Job
        From `plan_cells`.
    device, progress, deadline
        As in `gmlib.runs.store.run`.

    Returns
    -------
    left : int
        The number of cells that were not finished before the deadline.
    failed : list of str
        A sentence for each cell that could not be done: its loss is not finite, or a file in its folder is damaged
        or cannot be used.
    """
    left, failed = 0, []
    for cell, job in zip(cells, jobs, strict=True):
        try:
            found = do(job, others=jobs, device=device, progress=progress, deadline=deadline)
        except OutOfTime:
            left += 1  # cells that are stored follow
        except (Diverged, ValueError, OSError) as error:
            failed.append(f"{cell}: {error}")
        else:
            print(f"{cell}: {found}", flush=True)
    return left, failed
