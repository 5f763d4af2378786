"""The list of work: which sets each table of the paper needs, most informative first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..data import Data


@dataclass(frozen=True)
class Stage:
    """Part of a table: every method on every data set. Every method gets one seed before any gets the next.

    Attributes
    ----------
    name : str
        The table, or the section.
    ipc : int or None
        Images per class; None for all training images.
    methods : tuple of str
        Names in METHODS or CORESETS, or spelled "what,how,where"; ``"MD@lenet"`` for another source network.
    targets : tuple of str or None
        Networks trained on each set; None for the one the set was made with.
    only : str or None
        The paper's one data set for the table. If it is not requested, others replace it.
    instead : tuple of str
        These data sets replace it, if they are requested. If none is, the first requested one does.
    kind : str
        "sets", "descents" (Section 5), "pulls" (Section 3.3) or "whole" (all training images).
    """

    name: str
    ipc: int | None
    methods: tuple[str, ...]
    targets: tuple[str, ...] | None = None
    only: str | None = None
    instead: tuple[str, ...] = ()
    kind: str = "sets"

    @property
    def title(self) -> str:
        """The name with the images per class."""
        return self.name if self.ipc is None else f"{self.name}, IPC {self.ipc}"

    def cells(self, found: Sequence[Data], sets: int, begun: Collection[str] = ()) -> Iterator[tuple]:
        """The work of the stage, in order.

        Parameters
        ----------
        found : sequence of Data
            The data sets that were requested and found.
        sets : int
            Sets of each method.
        begun : collection of str
            Data sets that already replace ``only``. Of those that are not in ``instead``, no other is started then.

        Yields
        ------
        (data, method, ipc, seed, targets)
        """
        if self.only:
            named = [data for data in found if data.name in {*self.instead, *begun}]
            replacing = named or ([] if begun else found[:1])
            found = [data for data in found if data.name == self.only] or replacing
        for data in found:
            for seed in range(sets):
                for method in self.methods:
                    yield data, method, self.ipc, seed, self.targets


TARGETS = ("mlp", "convnet", "lenet", "alexnet", "vgg11", "resnet18")  # of Table 4

# Sets of an earlier stage are not made again. What takes hours on a CPU comes last.
STAGES = (
    Stage("Table 3", 1, ("random", "DC", "M", "MD")),
    Stage("Table 3", 1, ("herding",)),
    Stage("Table 1", 1, ("DC", "Inter", "Interleaved", "M")),
    Stage(
        "Table 2",
        1,
        (
            "M",
            "multi,d2,fixed",
            "multi,d3,fixed",
            "multi,100*d4,fixed",
            "MD",
            "multi,d1+d3,fixed",
            "multi,d1+100*d4,fixed",
        ),
        only="SVHN",
        instead=("CIFAR10", "FashionMNIST"),
    ),
    Stage("Section 5", 1, ("noise", "random", "DC", "Inter", "M", "MD"), kind="descents"),
    Stage("Table 3", 10, ("random",)),
    Stage("Table 3", 50, ("random",)),
    Stage("Table 4", 1, ("random", "MD", "MD@mlp", "MD@lenet", "MD@alexnet"), targets=TARGETS, only="MNIST"),
    Stage("Table 3", 10, ("herding",)),
    Stage("Table 3", 50, ("herding",)),
    Stage("Table 4", 1, ("MD@vgg11bn", "MD@resnet18bn"), targets=TARGETS, only="MNIST"),
    Stage("Table 3", 10, ("DC", "M", "MD", "MDO", "MDA")),
    Stage("Section 3.3", 10, ("MD", "MDA"), kind="pulls"),
    Stage("Table 1", 10, ("DC", "Inter", "Interleaved", "M")),
    Stage("Whole data", None, ("whole",), kind="whole"),
    Stage("Table 3", 50, ("DC", "M", "MD", "MDO", "MDA")),
)


def methods_of(table: str) -> set[str]:
    """All methods of a table."""
    return {method for stage in STAGES if stage.name == table and stage.kind == "sets" for method in stage.methods}


def stand_ins(table: str, runs: Iterable[tuple[str, int, str]]) -> dict[tuple[str, int], str]:
    """The data sets that replace the one data set of a table.

    A data set replaces it if a method that only this table has was run on it, with the table's images per class.

    Parameters
    ----------
    table : str
    runs : iterable of (dataset, ipc, method)

    Returns
    -------
    dict
        (dataset, ipc) of such runs -> the data set of the table. Empty for a table of several data sets.
    """
    stage = next((stage for stage in STAGES if stage.name == table), None)
    if stage is None or stage.only is None or stage.ipc is None:
        return {}
    others = {method for other in STAGES if other.name != table for method in methods_of(other.name)}
    own = set(stage.methods) - others
    found = [(d, ipc) for d, ipc, method in runs if method in own and ipc == stage.ipc and d != stage.only]
    return dict.fromkeys(found, stage.only)
