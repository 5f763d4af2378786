"""The cells of the paper's tables in a file.

The file is a CSV with a header. A line stands for one cell, or for every combination of the names in it, which have
spaces between them. The first lines come first. Only dataset, ipc and method are needed in every line::

    table,dataset,ipc,method,seed,targets,measure
    Table 3,MNIST CIFAR10,1,random DC M MD,,,
    Table 4,MNIST,1,MD@lenet,0,convnet lenet,
    Table 2,SVHN,1,"multi,d1+100*d4,fixed",1,,
    Section 5,MNIST,1,noise MD,,,reach
    Whole data,MNIST,,,,,whole

Without a seed there are as many sets as the budget has. Without targets, networks of the kind that the set was made
with are trained on it. ``measure`` is one of `MEASURES`: networks, unless it says otherwise.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..checks import check_number, choose
from ..files import as_path
from .provenance import PLACE

FILE = PLACE / "workflow" / "cells.csv"
MEASURES = {
    "networks": "a set, and networks trained on it",
    "reach": "Section 5: how far from its start training on a set stops",
    "pulls": "Section 3.3: how far each part of the loss moves S",
    "whole": "networks trained on all training images",
}
NEEDED = ("dataset", "ipc", "method")
COLUMNS = ("table", *NEEDED, "seed", "targets", "measure")
FOLDER = "imagefolder:"  # what follows is a path, which may hold spaces


@dataclass(frozen=True)
class Cell:
    """One set of a table with the networks that are trained on it, or a measurement.

    Attributes
    ----------
    dataset : str
    ipc : int or None
        Images per class; None for all training images.
    method : str
        As `gmlib.runs.store.run` takes it; "noise" for Section 5's control, "whole" for all training images.
    seed : int
    targets : tuple of str or None
        Architectures of the networks; None for the one that the set is made with.
    measure : str
        A name in MEASURES.
    table : str
        The table or section of the paper.
    place : str
        The file and line that it comes from, for messages.
    """

    dataset: str
    ipc: int | None
    method: str
    seed: int = 0
    targets: tuple[str, ...] | None = None
    measure: str = "networks"
    table: str = field(default="", compare=False)
    place: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The table, if it is known, and the cell."""
        return f"{self.table}: {self}" if self.table else str(self)

    def __str__(self) -> str:
        if self.ipc is None:
            return f"{self.dataset}, all training images"
        measure = f", {self.measure}" if self.measure != "networks" else ""
        return f"{self.dataset}, IPC {self.ipc}, {self.method}, set {self.seed}{measure}"


@dataclass(frozen=True)
class Line:
    """A line of the file. Its fields are those of `Cell`; without seeds it stands for all sets of a budget."""

    datasets: tuple[str, ...]
    ipc: int | None
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    targets: tuple[str, ...] | None = None
    measure: str = "networks"
    table: str = ""
    place: str = ""

    def cells(self, sets: int) -> Iterator[Cell]:
        """Its cells in order. Every method gets one seed on a data set before any gets the next."""
        seeds = (0,) if self.measure == "whole" else self.seeds or range(sets)
        for dataset in self.datasets:
            for seed in seeds:
                for method in self.methods:
                    yield Cell(dataset, self.ipc, method, seed, self.targets, self.measure, self.table, self.place)


@dataclass(frozen=True)
class Wanted:
    """Which cells are wanted. What is empty allows all."""

    tables: Collection[str] = ()
    datasets: Collection[str] = ()
    ipc: Collection[int] = ()
    methods: Collection[str] = ()
    seeds: Collection[int] = ()
    measures: Collection[str] = ()

    def of(self, lines: Sequence[Line], sets: int) -> list[Cell]:
        """The wanted cells in order, each once.

        Parameters
        ----------
        lines : sequence of Line
        sets : int
            The number of sets of the budget.

        Raises
        ------
        ValueError
            If a wanted name is in none of the lines, or nothing is left.
        """
        cells = [cell for line in lines for cell in line.cells(sets)]
        tables = [cell.table for cell in cells if cell.table]
        if self.tables and not tables:
            raise ValueError("no line names its table: choose none, or write them into the file")
        for what, names, there in (
            ("table", self.tables, tables),
            ("data set", self.datasets, [cell.dataset for cell in cells]),
            ("method", self.methods, [cell.method for cell in cells]),
            ("measure", self.measures, [cell.measure for cell in cells]),
        ):
            for name in names:
                choose(dict.fromkeys(there), what, name)
        sizes = {cell.ipc for cell in cells if cell.ipc is not None}
        seeds = {seed for line in lines for seed in (line.seeds or range(sets))}
        for numbers, known, what in ((self.ipc, sizes, "{} images per class"), (self.seeds, seeds, "the seed {}")):
            if odd := set(numbers) - known:
                all_of_them = ", ".join(map(str, sorted(known)))
                raise ValueError(f"no cell has {what.format(min(odd))}: choose from {all_of_them}")
        chosen = list(dict.fromkeys(cell for cell in cells if self._fits(cell)))
        if not chosen:
            raise ValueError("no cell has all that was chosen: choose less, or name another file of cells")
        return chosen

    def _fits(self, cell: Cell) -> bool:
        return (
            (not self.tables or cell.table in self.tables)
            and (not self.datasets or cell.dataset in self.datasets)
            and (not self.ipc or cell.ipc is None or cell.ipc in self.ipc)
            and (not self.methods or cell.method in self.methods)
            and (not self.seeds or cell.ipc is None or cell.seed in self.seeds)
            and (not self.measures or cell.measure in self.measures)
        )


def read_lines(path: str | os.PathLike = FILE) -> list[Line]:
    """Read a file of cells.

    Parameters
    ----------
    path : path

    Returns
    -------
    list of Line

    Raises
    ------
    ValueError
        If the file is no such CSV. The message names the line, and says what to do.
    FileNotFoundError
        If there is no such file.
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: name a CSV with lines for the cells")
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
    with at(place):
        for name in header:
            choose(dict.fromkeys(COLUMNS), "column", name)
        for name in COLUMNS:
            if header.count(name) != 1 and (name in NEEDED or name in header):
                raise ValueError(f"there are {header.count(name)} columns {name}: give one")
    return [_line(place, header, values) for place, values in cells]


def _line(place: str, header: Sequence[str], values: Sequence[str]) -> Line:
    with at(place):
        if len(values) != len(header):
            advice = 'give one for each, and write a method with commas as "multi,d1+d3,fixed"'
            raise ValueError(f"there are {len(values)} values for {len(header)} columns: {advice}")
        given = dict.fromkeys(COLUMNS, "") | dict(zip(header, values, strict=True))
        measure = given["measure"] or "networks"
        choose(MEASURES, "measure", measure)
        datasets = (given["dataset"],) if given["dataset"].startswith(FOLDER) else given["dataset"].split()
        methods = ",".join(part.strip() for part in given["method"].split(",")).split()
        ipc = None
        if measure == "whole":
            for name in ("ipc", "method", "seed", "targets"):
                if given[name]:
                    raise ValueError(f"{name}={given[name]!r} does not fit the measure whole: leave it empty")
            methods = ["whole"]
        else:
            if measure != "networks" and given["targets"]:
                raise ValueError(f"the measure {measure} trains no networks on a set: leave targets empty")
            ipc = _whole("ipc", given["ipc"], 1)
        for name, some in (("dataset", datasets), ("method", methods)):
            if not some:
                raise ValueError(f"there is no {name}: give at least one")
        return Line(
            datasets=tuple(datasets),
            ipc=ipc,
            methods=tuple(methods),
            seeds=tuple(_whole("seed", seed, 0) for seed in given["seed"].split()),
            targets=tuple(given["targets"].split()) or None,
            measure=measure,
            table=given["table"],
            place=place,
        )


def _whole(name: str, value: str, least: int) -> int:
    return check_number(name, int(value) if value.isdecimal() else value, whole=True, least=least)


class BadLine(ValueError):
    """A line of a file of cells cannot be used. The message begins with the file and the line."""


@contextmanager
def at(place: str) -> Iterator[None]:
    """Name the line of a cell in the message of an error."""
    try:
        yield
    except ValueError as error:
        if place:
            raise BadLine(f"{place}: {error}") from error
        raise


def methods_of(table: str, lines: Iterable[Line]) -> set[str]:
    """The methods of a table whose sets have networks."""
    return {method for line in lines if (line.table, line.measure) == (table, "networks") for method in line.methods}
