"""Judge a synthetic set: against random images, against all training images, and with several architectures."""

from __future__ import annotations

import html
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .checks import check_number, require, shown
from .coresets import coreset, random_choice
from .data import Data
from .evaluation import (
    Architecture,
    Evaluation,
    Network,
    Protocol,
    architecture_of,
    evaluate,
    protocol_for,
    resolve_protocol,
)
from .runtime import OutOfTime, generator, plain_torch
from .sets import SyntheticSet

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

WHOLE_IMAGES = 2**20  # images that one network sees at most while it trains on all training images
SLOW = 600  # seconds for the networks on all training images from which a warning says how to save time
TABLE_4 = ("mlp", "convnet", "lenet", "alexnet", "vgg11", "resnet18")
WEAKEST = 3  # classes that a judgement names
LONGEST = 24  # characters of a class in a table


@dataclass(frozen=True, repr=False)
class Judgement:
    """How good a set is, compared with random images and with all training images. It prints as a table.

    After ± stands the standard deviation between networks; for random images it is that of the networks of all draws.

    Attributes
    ----------
    evaluation : Evaluation
        Of the set.
    random : tuple of Evaluation
        One for each draw of as many real images per class.
    whole : Evaluation or None
        Of networks trained on all training images.
    data : str
        The name of the data.
    classes : tuple of str
        Their names.
    counts : tuple of int
        Images per class of the set.
    n_whole, n_test : int
        Numbers of training and test images of the data.
    """

    evaluation: Evaluation
    random: tuple[Evaluation, ...]
    whole: Evaluation | None
    data: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    n_whole: int
    n_test: int

    @property
    def ior(self) -> float:
        """Improvement over random: the mean accuracy of the set minus that of random images, in points.

        The mean over random images is the mean of the means of all draws. NaN without draws.
        """
        return self.evaluation.mean - _mean(self._random_means())

    @property
    def ior_ci95(self) -> tuple[float, float]:
        """95% interval of `ior` (Welch). It covers other networks and other draws of random images, not other sets.

        Each draw counts as one value. So the interval is wide for three draws, and NaN for one.
        """
        return self._interval(self.ior, self.evaluation.accuracies, self._random_means())

    @property
    def hlr(self) -> float:
        """Hard label recovery: the mean accuracy on all training images minus that of the set, in points.

        Smaller is better. NaN without networks on all training images.
        """
        return (self.whole.mean if self.whole else math.nan) - self.evaluation.mean

    @property
    def hlr_ci95(self) -> tuple[float, float]:
        """95% interval of `hlr` (Welch). It covers other networks, not other sets."""
        return self._interval(self.hlr, self.evaluation.accuracies, self.whole.accuracies if self.whole else ())

    @property
    def per_class(self) -> dict[str, float]:
        """Recall of each class, in percent, of networks trained on the set. NaN for a class without test images."""
        return dict(zip(self.classes, self.evaluation.mean_per_class, strict=False))

    @property
    def balanced(self) -> float:
        """Balanced accuracy of networks trained on the set, in percent, see `Evaluation.balanced`."""
        return self.evaluation.balanced

    def _random_means(self) -> list[float]:
        return [e.mean for e in self.random if e.n]  # all networks of a draw may have diverged

    @staticmethod
    def _interval(difference: float, a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
        from .analysis.statistics import welch_half_width  # needs the extra "analysis"

        half = welch_half_width(np.array(a), np.array(b))
        return difference - half, difference + half

    def _rows(self) -> list[list[str]]:
        size = sum(self.counts)
        rows = [["this set", str(size), *_cells(self.evaluation)]]
        if self.random:
            draws = len(self.random)
            rows.append(
                [f"random images ({draws} draw{'s' * (draws > 1)})", str(size), *_cells(_pooled(self.random))]
            )
        if self.whole:
            rows.append(["all training images", str(self.n_whole), *_cells(self.whole)])
        return rows

    def _lines(self) -> list[str]:
        """What is said below the table."""
        lines = []
        if not math.isnan(self.ior):
            lines.append(f"gain over random images (IOR): {self.ior:+.1f} points{_spelt(lambda: self.ior_ci95)}")
        if not math.isnan(self.hlr):
            lines.append(f"gap to all training images (HLR): {self.hlr:+.1f} points{_spelt(lambda: self.hlr_ci95)}")
        recalls = [(recall, name) for name, recall in self.per_class.items() if not math.isnan(recall)]
        if recalls:
            weakest = ", ".join(f"{_plain(name)} {recall:.1f} %" for recall, name in sorted(recalls)[:WEAKEST])
            lines.append(f"weakest classes: {weakest}")
        return lines

    def _caption(self) -> str:
        return f"{self.evaluation.network}, tested on the {self.n_test} test images of {_plain(self.data)}"

    def __str__(self) -> str:
        return "\n".join([self._caption(), *_as_text(HEADER, self._rows()), *self._lines()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _as_html(self._caption(), HEADER, self._rows(), self._lines())


@plain_torch()
def judge(
    S: SyntheticSet | Data,
    data: Data,
    network: Network = "convnet",
    n_networks: int = 5,
    seed: int = 0,
    *,
    random_sets: int = 3,
    whole: bool | Evaluation = True,
    whole_epochs: int | None = None,
    protocol: Protocol | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
    **changes: Any,
) -> Judgement:
    """Compare a set with random real images, and with all training images.

    The same networks are trained on each of them by the same protocol: network j starts with the same weights
    everywhere. `Judgement.ior` and `Judgement.hlr` are the differences. DD-Ranking defines them in the same way, but
    its package trains in another way: it searches the learning rate on the test images, always for random images, and
    takes the best of the test accuracies after every tenth epoch. Here the learning rate is the protocol's, and the
    accuracy after the last epoch counts.

    Parameters
    ----------
    S : SyntheticSet or Data
        The set to judge, whoever made it, as in `gmlib.evaluate`.
    data : Data
    network : str, nn.Module or callable
        As in `gmlib.evaluate`.
    n_networks : int
        Networks trained on S, on each draw of random images and on all training images.
    seed : int
    random_sets : int
        Draws of as many random training images per class as S has. Draw i is
        ``gmlib.coreset("random", data, ipc, seed + i)``. 0 leaves this comparison out.
    whole : bool or Evaluation
        Also train networks on all training images, which takes most of the time. False leaves it out. An evaluation
        of such networks from elsewhere, as from `gmlib.runs.whole_data`, is used as it is.
    whole_epochs : int, optional
        Epochs on all training images. None takes the protocol's, but so few that a network sees at most 2^20 images:
        17 epochs of 60,000 images. A longer training may reach more, and then `Judgement.hlr` is too small. The table
        says how many epochs there were.
    protocol, device, progress, **changes
        As in `gmlib.evaluate`. The protocol is that for S also on the other images.
    deadline : float, optional
        In the unit of ``time.monotonic()``. Nothing is kept then.

    Returns
    -------
    Judgement

    Raises
    ------
    ValueError
        As `gmlib.evaluate`; or if S has more images of a class than there are training images to draw from.
    OutOfTime
        At the deadline.

    Source
    ------
    DD-Ranking, arXiv 2505.13300: IOR is Acc(synthetic) - Acc(random), HLR is Acc(real) - Acc(synthetic).
    """
    random_sets = check_number("random_sets", random_sets, least=0, whole=True)
    if not isinstance(whole, bool | Evaluation):
        raise ValueError(f"whole={shown(whole)} does not fit: give True, False or an Evaluation")
    if whole_epochs is not None:
        whole_epochs = check_number("whole_epochs", whole_epochs, least=1, whole=True)
    architecture = architecture_of(network)
    resolved = resolve_protocol(S, data, architecture, protocol, **changes)
    protocol = protocol_for(S, protocol, **changes)
    if isinstance(whole, Evaluation) and whole.network != architecture.name:
        raise ValueError(
            f"whole is an evaluation of {whole.network}, but {architecture.name} is trained here: give one of this "
            "network, or True"
        )
    if random_sets:
        _check_counts(S.counts, data)
    training: dict[str, Any] = {"protocol": protocol, "device": device, "progress": progress, "deadline": deadline}

    def trained_on(images: SyntheticSet | Data, **changes: Any) -> Evaluation:
        return evaluate(images, data, architecture, n_networks, seed, **training, **changes)

    with _as_a_whole():
        found = trained_on(S)
        random = tuple(trained_on(random_images(data, S.counts, seed + i)) for i in range(random_sets))
        on_all = whole if isinstance(whole, Evaluation) else None
        if whole is True:
            n = len(data.train_labels)
            epochs = whole_epochs or min(resolved["epochs"], max(1, WHOLE_IMAGES // n))
            _warn_if_slow(found, sum(S.counts), n, len(data.test_labels), epochs)
            on_all = trained_on(data, epochs=epochs)
    n_whole, n_test = len(data.train_labels), len(data.test_labels)
    return Judgement(found, random, on_all, data.name, data.classes, S.counts, n_whole, n_test)


def random_images(data: Data, counts: Sequence[int], seed: int = 0) -> SyntheticSet:
    """Draw ``counts[c]`` training images of each class c without replacement.

    If these are equal, it is the coreset "random". Otherwise class c has the first images of that coreset.

    Raises
    ------
    ValueError
        If a class has fewer training images.
    """
    _check_counts(counts, data)
    if len(set(counts)) == 1:
        return coreset("random", data, counts[0], seed)
    chosen = []
    for c, n in enumerate(counts):
        images = data.of_class(c)
        chosen.append(images[random_choice(images, n, generator(seed, "coreset", "random", c)).to(images.device)])
    labels = torch.arange(data.n_classes).repeat_interleave(torch.tensor(counts)).to(data.train_labels.device)
    recipe = {"method": "random", "dataset": data.name, "seed": seed}
    return SyntheticSet(torch.cat(chosen), labels, data.classes, data.mean, data.std, recipe)


def _check_counts(counts: Sequence[int], data: Data) -> None:
    for name, n, there in zip(data.classes, counts, data.counts, strict=True):
        if n > there:
            raise ValueError(
                f"the set has {n} images of the class {name!r} but {data.name} only {there} to draw from: give "
                "random_sets=0 to leave random images out"
            )


@contextmanager
def _as_a_whole() -> Iterator[None]:
    """Say what to do at the deadline in the terms of `judge`: `evaluate` cannot continue here."""
    try:
        yield
    except OutOfTime:
        raise OutOfTime(
            "out of time, and nothing of this comparison is saved: give it more time or fewer networks"
        ) from None


def _warn_if_slow(found: Evaluation, n_set: int, n_whole: int, n_test: int, epochs: int) -> None:
    """Log a warning if the networks on all training images may take long, judged by those on the set."""
    tests = n_test / 3  # a forward pass takes about a third of a training pass
    seconds = found.seconds * (epochs * n_whole + tests) / (found.protocol["epochs"] * n_set + tests)
    if seconds > SLOW:
        log.warning(
            "training on all %d images may take up to %.0f minutes: whole=False leaves it out, and whole_epochs= "
            "less than %d saves time",
            n_whole,
            seconds / 60,
            epochs,
        )


# ---- several architectures ---------------------------------------------------------------------------------


class CrossArchitectures(dict[str, Evaluation]):
    """Evaluations of one set by the name of the network. It prints as a table.

    Attributes
    ----------
    left_out : dict of str to str
        The networks of Table 4 that do not take images of this size, and why.
    """

    def __init__(self, evaluations: Mapping[str, Evaluation] = {}, left_out: Mapping[str, str] = {}):
        super().__init__(evaluations)
        self.left_out = dict(left_out)

    def to_dataframe(self) -> pd.DataFrame:
        """The table as a pandas DataFrame. It needs the extra "analysis".

        Returns
        -------
        DataFrame
            Index ``network``. Columns: ``accuracy``, ``std``, ``low``, ``high`` (95% t interval) and ``balanced`` in
            percent, ``networks``, ``diverged``, ``epochs``, ``seconds``.
        """
        pd = require("pandas", "analysis")
        rows = [
            {
                "accuracy": e.mean,
                "std": e.std,
                "low": e.ci95[0],
                "high": e.ci95[1],
                "balanced": e.balanced,
                "networks": e.n,
                "diverged": len(e.failed),
                "epochs": e.protocol.get("epochs"),
                "seconds": e.seconds,
            }
            for e in self.values()
        ]
        return pd.DataFrame(rows, index=pd.Index(self, name="network"))

    def _rows(self) -> list[list[str]]:
        return [[_plain(name), *_cells(e)] for name, e in self.items()]

    def _lines(self) -> list[str]:
        return [f"left out: {name}, since {why}" for name, why in self.left_out.items()]

    def __str__(self) -> str:
        return "\n".join([*_as_text(["network", *HEADER[2:]], self._rows()), *self._lines()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _as_html("", ["network", *HEADER[2:]], self._rows(), self._lines())


def cross_architectures(
    S: SyntheticSet | Data,
    data: Data,
    networks: Mapping[str, Network] | Collection[Network] | Network | None = None,
    n_networks: int = 5,
    seed: int = 0,
    *,
    protocol: Protocol | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
    **changes: Any,
) -> CrossArchitectures:
    """Train networks of several architectures on one set.

    Parameters
    ----------
    S : SyntheticSet or Data
    data : Data
    networks : list, dict or None
        Names and networks of your own, mixed, each as in `gmlib.evaluate`. A dict gives them names. None takes those
        of Table 4 that are made for images of this size; the table says which it leaves out.
    n_networks : int
        Networks of each architecture.
    seed, protocol, device, progress, **changes
        As in `gmlib.evaluate`.
    deadline : float, optional
        In the unit of ``time.monotonic()``. Nothing is kept then.

    Returns
    -------
    CrossArchitectures
        A dict of evaluations by name, in the order of ``networks``.

    Raises
    ------
    ValueError
        As `gmlib.evaluate`, or if a name is given twice. All networks are checked before the first is trained.
    OutOfTime
        At the deadline.

    Source
    ------
    Table 4, Appendix A.2.
    """
    resolve_protocol(S, data, "mlp", protocol, **changes)  # it takes images of any size
    protocol = protocol_for(S, protocol, **changes)
    left_out = {}
    chosen: dict[str, Architecture] = {}
    if networks is None:
        for name in TABLE_4:
            try:
                resolve_protocol(S, data, name, protocol)
            except ValueError as error:
                left_out[name] = str(error).partition(":")[0]
            else:
                chosen[name] = Architecture(name)
    else:
        for name, architecture in _named(networks):
            if name in chosen:
                raise ValueError(f"the network {name!r} is given twice: give each once, or a dict with other names")
            chosen[name] = architecture
            resolve_protocol(S, data, architecture, protocol)
    if not chosen:
        raise ValueError("there are no networks to train: name at least one")
    found = {}
    with _as_a_whole():
        for name, architecture in chosen.items():
            found[name] = evaluate(
                S, data, architecture, n_networks, seed,
                protocol=protocol, device=device, progress=progress, deadline=deadline,
            )  # fmt: skip
    return CrossArchitectures(found, left_out)


def _named(networks: Mapping[str, Network] | Collection[Network] | Network) -> list[tuple[str, Architecture]]:
    """Names and architectures. Modules of the same class get a number after its name."""
    if isinstance(networks, Mapping):
        odd = [name for name in networks if not isinstance(name, str)]
        if odd:
            raise ValueError(f"{shown(odd[0])} is no name of a network: give a dict with names as keys")
        return [(name, architecture_of(network)) for name, network in networks.items()]
    if isinstance(networks, str) or callable(networks):
        networks = [networks]
    if not isinstance(networks, Collection):
        raise ValueError(f"networks={shown(networks)} does not fit: give a list of names and networks")
    named = []
    seen: dict[str, int] = {}
    for network in networks:
        architecture = architecture_of(network)
        name = architecture.name
        if architecture.factory is not None:
            seen[name] = seen.get(name, 0) + 1
            name += f" {seen[name]}" if seen[name] > 1 else ""
        named.append((name, architecture))
    return named


# ---- tables ------------------------------------------------------------------------------------------------

HEADER = ["trained on", "images", "accuracy %", "balanced %", "networks", "epochs"]


def _cells(e: Evaluation) -> list[str]:
    """The cells that all tables have."""
    spread = f" ± {e.std:.1f}" if e.n > 1 else ""
    accuracy = f"{e.mean:.1f}{spread}" if e.n else "none"
    balanced = "" if math.isnan(e.balanced) else f"{e.balanced:.1f}"
    networks = f"{e.n} of {e.trained}" if e.failed else str(e.n)
    return [accuracy, balanced, networks, str(e.protocol.get("epochs", ""))]


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    """All networks of several evaluations as one."""
    accuracies = tuple(a for e in evaluations for a in e.accuracies)
    per_class = tuple(row for e in evaluations for row in e.per_class)
    failed = tuple(range(sum(len(e.failed) for e in evaluations)))  # only their number counts
    return replace(evaluations[0], accuracies=accuracies, per_class=per_class, failed=failed)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _spelt(interval: Callable[[], tuple[float, float]]) -> str:
    """An interval in words; nothing if it has no value, or scipy is not installed."""
    try:
        low, high = interval()
    except ModuleNotFoundError as error:
        return f" (no interval: {error})"
    return "" if math.isnan(low) else f" (95% interval {low:+.1f} to {high:+.1f})"


def _plain(name: str) -> str:
    """A name in one line of limited length, without characters that a terminal obeys."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _as_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table. The first column is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in (header, *rows)]


def _as_html(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str]) -> str:
    """A table for a notebook, with lines below it. All text is escaped."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    below = "<br>".join(map(html.escape, lines))
    caption = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    table = f"<table>{caption}<thead>{row(header, 'th')}</thead><tbody>{body}</tbody></table>"
    return f'<div style="overflow-x:auto">{table}</div><p>{below}</p>'
