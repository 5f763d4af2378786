"""Do a run, or read back what is stored.

One run is one folder, results/<dataset>/ipc<N>/<method>/set<seed>/::

    set.safetensors          the synthetic set (`SyntheticSet.load`)
    run.json                 recipe, versions, device, seconds, peak memory, history, which data, and which set
    accuracy-<network>.json  the accuracy of each network trained on the set, written after each network
    snapshots.safetensors    on request: S after some outer iterations
    trace.json               the accuracies of networks trained on these
    checkpoint.safetensors, begun.json    only while S is unfinished
    training-*.safetensors   only while networks are in training

results/<dataset>/whole/accuracy-<network>.json holds networks trained on all training images. Every file is written
atomically, and run.json only when S is finished. What is stored is read back and never done again. Every file holds
the sha256 of its content, and all but the first hold that of the set as "set" (of the data, if there is no set). A
damaged file, or one of another set, is refused in one sentence that says what to delete.

A run that is stopped and continued gives the same bits as one without a stop, on one machine's CPU with one number
of threads. "threads" lists the numbers of all parts of the work that stored something, if they differ.

If several sets were made together, "made_together" in run.json is their number: the largest, if a part of the work
was done with fewer. Of the work that they shared, "seconds" counts an equal part, but "peak_memory_bytes" is the peak
of all of them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint import Checkpoint
from ..checks import as_list, check_flag, check_number, choose, require, shown
from ..condensation import Diverged, condense_together
from ..coresets import TRAINING, coreset, features_checkpoint
from ..data import Data, check_data
from ..draws import groups
from ..evaluation import Evaluation, Protocol, evaluate, resolve_protocol
from ..files import (
    as_json,
    as_path,
    damaged,
    json_digest,
    path_or,
    read_json,
    read_tensors,
    remove_leftovers,
    slug,
    write_json,
    write_tensors,
)
from ..networks import parse_name
from ..recipe import BUDGETS
from ..runtime import OutOfTime, check_deadline, deadline_passed, device_of, progress_bar
from ..sets import SyntheticSet
from ..speed.memory import PeakMemory
from .jobs import CHANGED, Job, default_folder, plan_run, stored_evaluation, stored_record
from .layout import (
    MOST_NETWORKS,
    REST,
    MadeWith,
    StoredTable,
    evaluation_to_json,
    load_set,
    read_accuracies,
    read_trace,
    whole_data_folder,
)
from .locks import Busy, locked
from .provenance import environment, made_with_here

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CHANGED",
    "Job",
    "Run",
    "cached_table",
    "default_folder",
    "do",
    "plan_run",
    "run",
    "sweep",
    "whole_data",
]

SNAPSHOTS_FORMAT = "gmlib-snapshots-1"
MOST_SETS = 1000  # of one method in a sweep
CHECKPOINT = "checkpoint.safetensors"
SNAPSHOTS = "snapshots.safetensors"
BEGUN = "begun.json"


@dataclass(frozen=True)
class Run:
    """One condensed or selected set with its accuracies.

    Attributes
    ----------
    folder : Path
    S : SyntheticSet
    evaluations : dict of str to Evaluation
        By target network, in the order of the call.
    record : dict
        run.json.
    trace : dict of int to (SyntheticSet, Evaluation)
        S and its accuracies by number of outer iterations.
    """

    folder: Path
    S: SyntheticSet
    evaluations: dict[str, Evaluation]
    record: dict[str, Any]
    trace: dict[int, tuple[SyntheticSet, Evaluation]]

    @property
    def evaluation(self) -> Evaluation:
        """Accuracies of the first target network."""
        return next(iter(self.evaluations.values()))

    def __str__(self) -> str:
        if not self.evaluations:
            return repr(self.S)
        named = len(self.evaluations) > 1
        return ", ".join(f"{network} {e}" if named else str(e) for network, e in self.evaluations.items())


def run(
    data: Data,
    method: str,
    ipc: int,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
    wait: bool = True,
    **options: Any,
) -> Run:
    """Condense or select one set and train networks on it, or read back what is stored.

    Parameters
    ----------
    data : Data
    method : str
        A name in METHODS or CORESETS, or one spelled "what,how,where"; ``"MD@lenet"`` for another source network.
    ipc : int
        Images per class.
    device, progress, deadline
        As in `gmlib.condense` and `gmlib.evaluate`.
    wait : bool
        Wait if another process works in the folder of the run.
    budget : str
        A name in BUDGETS.
    seed : int
    networks : int, optional
        Networks to train on the set. None takes the budget's number; fewer than are stored takes the first of them.
    targets : list of str or str, optional
        Architectures of these networks. None takes the recipe's.
    results_dir : path, optional
        None takes ``default_folder(budget)``.
    snapshots : list of int
        Numbers of outer iterations after which S is kept and evaluated too. A stored run returns those it has.
    trace_networks : int, optional
        Networks to train on each of these; 0 keeps them without. None takes as many as on the set.
    dtype : torch.dtype, optional
        Of the stored images; torch.float16 halves the file. Networks are trained on the stored images.
    **options
        Fields of `Recipe` to change. A changed what, how, where or network makes another method, with a folder of
        its own; any other change adds ", changed" to the name of the budget.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        For unknown names, a recipe that does not fit the data, or a folder with a run of another recipe, protocol
        or copy of the data; before any work.
    OutOfTime
        At the deadline. The same call continues.
    Busy
        If another process works in the folder and ``wait`` is False; see `gmlib.runs.locks`.
    Diverged
        If the matching loss is no longer finite.
    """
    job = plan_run(data, method, ipc, **options)
    return do(job, device=device, progress=progress, deadline=deadline, wait=wait)


def do(
    job: Job,
    *,
    others: Sequence[Job] = (),
    device: torch.device | str | None = None,
    progress: bool = True,
    deadline: float | None = None,
    wait: bool = True,
    partly: bool = False,
    only_set: bool = False,
) -> Run:
    """Do a planned run, or read back what is stored.

    Parameters
    ----------
    job : Job
        From `plan_run`.
    others : sequence of Job
        Jobs for later. If ``job`` has to be condensed, those that meet the same networks and real batches are
        condensed with it, unless another process works in their folder. No network is trained on their sets yet.
        Only sets with T = 1 are made together. With more inner iterations little can be shared, and no set would be
        finished before all are.
    device, progress, deadline, wait
        As in `run`.
    partly : bool
        At the deadline return a set that has only some of its target networks.
    only_set : bool
        Train no networks, and read none.

    Returns
    -------
    Run

    Raises
    ------
    ValueError, OutOfTime, Busy, Diverged
        As `run`. If something is wrong with one of the others, only its own `do` raises an error.
    """
    device = device_of(device)
    check_flag("progress", progress)
    with locked(job.folder, deadline, wait):
        return _do(job, others, device, progress, deadline, partly, only_set)


def sweep(
    data: Data,
    methods: Collection[str] | str,
    ipc: Collection[int] | int,
    *,
    budget: str = "paper",
    sets: int | None = None,
    seed: int = 0,
    trace: Mapping[tuple[str, int], Collection[int]] | None = None,
    together: bool = True,
    deadline: float | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[list[Run], dict[tuple[str, int, str], str]]:
    """`run` every method at every ipc, for sets with seeds seed, seed + 1, ...

    Every method gets one seed before any gets the next, so an interrupted sweep can still compare them. All runs are
    checked before the first starts.

    Parameters
    ----------
    data : Data
    methods, ipc : list, or str with commas
        "DC,M" as a command line passes it.
    budget : str
    sets : int, optional
        Sets of each method. None takes the budget's number.
    seed : int
        Seed of the first set.
    trace : dict, optional
        (method, ipc) -> snapshots to keep of its first set.
    together : bool
        Make sets with one image per class and the same seed together, as `do` does. The seconds in the history of
        such a set count only a part of the pass over real images. If False, they are those of its method alone.
    deadline : float, optional
        ``time.monotonic()`` after which nothing more starts. What is stored is still read back, also a set with only
        some of its target networks.
    device, progress, options
        As in `run`.

    Returns
    -------
    runs : list of Run
    left : dict
        (dataset, ipc, method) -> the reason, for each method that has no set.

    Raises
    ------
    ValueError
        As `run`.
    """
    methods, ipcs = as_list(methods), as_list(ipc)
    check_data(data)
    sets = choose(BUDGETS, "budget", budget).sets if sets is None else sets
    sets = check_number("sets", sets, least=1, below=MOST_SETS + 1, whole=True)
    seed = check_number("seed", seed, least=0, whole=True)
    if not isinstance(trace, Mapping | None):
        raise ValueError(f"trace={shown(trace)} does not fit: give {{(method, ipc): numbers of outer iterations}}")
    jobs = []
    for n in ipcs:
        for s in range(seed, seed + sets):
            for m in methods:
                snapshots = (trace or {}).get((m, n), ()) if s == seed else ()
                jobs.append(plan_run(data, m, n, budget=budget, seed=s, snapshots=snapshots, **options))
    device = device_of(device)
    how_run: dict[str, Any] = {"device": device, "progress": progress and budget != "smoke", "deadline": deadline}
    runs: list[Run] = []
    left = {}
    with progress_bar(f"{data.name}, {budget} budget", len(jobs), "set", progress) as bar:
        for job in jobs:
            try:
                found = do(job, others=jobs if together else (), partly=True, **how_run)
            except OutOfTime:
                if not any((r.S.ipc, r.record["method"]) == (job.recipe.ipc, job.method) for r in runs):
                    left[data.name, job.recipe.ipc, job.method] = "the time budget was used up"
            else:
                runs.append(found)
                bar.update(len(found.evaluations) == len(job.targets))  # only a finished set counts
    return runs, left


def whole_data(
    data: Data,
    network: str = "convnet",
    *,
    budget: str = "paper",
    networks: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    results_dir: str | os.PathLike | None = None,
    progress: bool = True,
    deadline: float | None = None,
    wait: bool = True,
    **protocol: Any,
) -> Evaluation:
    """Train networks on all training images, or read back what is stored.

    Parameters
    ----------
    data : Data
    network : str
        Their architecture.
    budget : str
    networks : int, optional
        How many. None takes the budget's number.
    seed, device, results_dir, progress, deadline, wait
        As in `run`.
    **protocol
        Fields of `Protocol` to change.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError, OutOfTime, Busy
        As `run`.

    Source
    ------
    Table 3, last column.
    """
    check_data(data)
    parse_name(network)  # an unknown name is refused here
    size = choose(BUDGETS, "budget", budget)
    n = size.networks if networks is None else networks
    n = check_number("networks", n, least=1, below=MOST_NETWORKS + 1, whole=True)
    seed = check_number("seed", seed, least=0, whole=True)
    sizes = {name: value for name, value in size.recipe.items() if name in ("width", "depth")}
    how_trained = Protocol(**{**sizes, "epochs": size.epochs, **protocol})
    folder = whole_data_folder(path_or(results_dir, default_folder(budget)), data.name)
    device = device_of(device)
    check_flag("progress", progress)
    with locked(folder, deadline, wait):
        remove_leftovers(folder)
        return _evaluated(
            folder, data, data, data.fingerprint, network, n, seed, how_trained, device, progress, deadline
        )


def cached_table(
    path: str | os.PathLike,
    settings: dict[str, Any],
    compute: Callable[[], pd.DataFrame],
    *,
    deadline: float | None = None,
    device: torch.device | str | None = None,
    wait: bool = True,
) -> pd.DataFrame:
    """The table stored in a file, or the result of ``compute()``, which is then stored there.

    If two processes need the same file, the second reads what the first made.

    Parameters
    ----------
    path : path
    settings : dict
        What the table depends on, in plain JSON types. Stored with it.
    compute : callable
        Returns a DataFrame. Finite numbers are read back bit for bit, others as NaN.
    deadline : float, optional
        ``time.monotonic()`` after which nothing is computed.
    device : torch.device or str, optional
        Where ``compute`` works; stored with the table. None takes CUDA if there is one.
    wait : bool
        Wait if another process works in the folder.

    Returns
    -------
    DataFrame

    Raises
    ------
    ValueError
        If the stored table was made with other settings or is damaged.
    OutOfTime
        If nothing is stored at the deadline.
    Busy
        If another process works in the folder and ``wait`` is False.
    """
    path = as_path(path)
    check_deadline(deadline)
    settings = as_json(settings, "settings")
    if path.exists():
        return _read_table(path, settings)
    if deadline_passed(deadline):
        raise OutOfTime(f"out of time before {path} was made: run again to continue")
    with locked(path.parent, deadline, wait):
        if path.exists():
            return _read_table(path, settings)
        started = time.monotonic()
        made_with = environment(device_of(device))
        table = compute()
        content = {"settings": settings, **_table_to_json(table), **made_with, "seconds": time.monotonic() - started}
        write_json(path, content)
    return table


def _read_table(path: Path, settings: dict[str, Any]) -> pd.DataFrame:
    pd = require("pandas", "analysis")
    content = read_json(path, StoredTable)
    if content["settings"] != settings:
        raise ValueError(f"{path} was made with other settings: delete it or choose another results_dir")
    try:
        return pd.DataFrame(content["columns"]).astype(content["dtypes"])
    except (TypeError, ValueError, KeyError) as error:
        raise damaged(path, error) from error


def _table_to_json(table: pd.DataFrame) -> dict[str, Any]:
    pd = require("pandas", "analysis")
    no_json = (math.inf, -math.inf)
    columns = {
        name: [None if pd.isna(v) or v in no_json else v for v in column.tolist()] for name, column in table.items()
    }
    return {"columns": columns, "dtypes": table.dtypes.astype(str).to_dict()}


def _do(
    job: Job,
    others: Sequence[Job],
    device: torch.device,
    progress: bool,
    deadline: float | None,
    partly: bool,
    only_set: bool,
) -> Run:
    """Both phases of one run, in a folder that is locked."""
    remove_leftovers(job.folder)
    record = stored_record(job)
    if record is None:
        if deadline_passed(deadline):
            raise OutOfTime(f"out of time before {job.folder} was started: run again to continue")
        record = _make(job, others, device, progress, deadline)
    _clean(job.folder)  # a killed process may have left something
    S, of = load_set(job.folder, record), record["set"]
    n, seed = job.n_networks, job.recipe.seed
    evaluations: dict[str, Evaluation] = {}
    trace: dict[int, tuple[SyntheticSet, Evaluation]] = {}
    if only_set:
        return Run(job.folder, S, evaluations, record, trace)
    try:
        for network in sorted(
            job.targets, key=lambda network: not _is_evaluated(job, network, of)
        ):  # stored ones first
            evaluations[network] = _evaluated(
                job.folder, S, job.data, of, network, n, seed, job.protocol, device, progress, deadline
            )
        trace = _traced(job, S, of, evaluations[job.source], device, progress, deadline)
    except OutOfTime:
        if not (partly and evaluations):
            raise
    in_order = {network: evaluations[network] for network in job.targets if network in evaluations}
    return Run(job.folder, S, in_order, record, trace)


def _clean(folder: Path) -> None:
    """Delete what only an unfinished run needs."""
    for pattern in ("checkpoint*.safetensors", TRAINING, BEGUN):
        for leftover in folder.glob(pattern):
            leftover.unlink()


def _is_evaluated(job: Job, network: str, of: str) -> bool:
    protocol = resolve_protocol(job.data, job.data, network, job.protocol)
    stored = stored_evaluation(job.folder, network, job.recipe.seed, protocol, of)
    return stored is not None and stored.trained >= job.n_networks


def _make(
    job: Job, others: Sequence[Job], device: torch.device, progress: bool, deadline: float | None
) -> dict[str, Any]:
    """Phase 1: condense or select. Stores the set, its snapshots and its record."""
    if not job.coreset:
        with _joined(job, others) as joined:
            return _condense([job, *joined], device, progress, deadline)
    started, peak = time.monotonic(), PeakMemory(device)
    made_with = _begin(job, device)
    of = (job.coreset, job.data, job.recipe.ipc, job.recipe.seed)
    earlier = features_checkpoint(job.data, job.made_by, job.folder).seconds()
    S = coreset(*of, device=device, deadline=deadline, checkpoint=job.folder, **job.coreset_options)
    return _store(job, S, made_with, earlier + time.monotonic() - started, peak())


@contextmanager
def _joined(job: Job, others: Sequence[Job]) -> Iterator[list[Job]]:
    """The jobs that are made together with one. Their folders are locked meanwhile.

    No folder is waited for, because another process may hold it and wait for that of ``job``.
    """
    found = []
    with ExitStack() as held:
        for other in sharing(job, others):
            # An error is raised when that job is done.
            with suppress(Busy, ValueError, OSError), ExitStack() as its:
                its.enter_context(locked(other.folder, wait=False))
                if _can_be_made(other):
                    held.enter_context(its.pop_all())
                    found.append(other)
        yield found


def sharing(job: Job, others: Sequence[Job]) -> list[Job]:
    """The others that have no set yet and meet the same networks and real batches as a job with T = 1."""
    if not _is_shareable(job):
        return []
    distinct = {other.folder: other for other in others if _is_shareable(other) and other.data is job.data}
    distinct.pop(job.folder, None)
    candidates = list(distinct.values())
    group, *_ = groups([job.recipe, *(other.recipe for other in candidates)])
    return [candidates[i - 1] for i in group[1:] if not (candidates[i - 1].folder / "run.json").is_file()]


def _is_shareable(job: Job) -> bool:
    """True for a set that is condensed with T = 1."""
    return job.coreset is None and job.recipe.schedule()[0] == 1


def _can_be_made(job: Job) -> bool:
    """False if there is a run.json, whatever is in it. ValueError if an unfinished run cannot be continued."""
    _begun(job)
    Checkpoint(job.folder / CHECKPOINT, job.data, [job.recipe])
    return not (job.folder / "run.json").is_file()


def _condense(jobs: Sequence[Job], device: torch.device, progress: bool, deadline: float | None) -> dict[str, Any]:
    """Condense the sets of several jobs together, and store each when it is finished. Returns the first's record."""
    peak = PeakMemory(device)
    made_with = [_begin(job, device, len(jobs)) for job in jobs]
    records: dict[int, dict[str, Any]] = {}

    def finished(i: int, S: SyntheticSet) -> None:
        seconds = sum(entry["seconds"] for entry in S.history)  # with those before a restart
        records[i] = _store(jobs[i], S, made_with[i], seconds, peak())

    try:
        condense_together(
            jobs[0].data,
            [job.recipe for job in jobs],
            device,
            [job.folder / CHECKPOINT for job in jobs],
            progress,
            snapshots=[job.snapshots for job in jobs],
            deadline=deadline,
            finished=finished,
        )
    except Diverged:
        if 0 not in records:  # another's is raised when that job is done
            raise
    finally:
        for i in records:
            _clean(jobs[i].folder)
    return records[0]


def _begin(job: Job, device: torch.device, together: int = 1) -> dict[str, Any]:
    """What the set is made with. It is kept for the process that continues, perhaps at another commit or alone."""
    before = _begun(job)
    made_with = made_with_here(device, before)
    if (job.folder / CHECKPOINT).exists():  # otherwise nothing of the earlier work is left
        together = max(together, before.get("made_together", 1))
    if together > 1:
        made_with["made_together"] = together
    write_json(job.folder / BEGUN, made_with)
    return made_with


def _begun(job: Job) -> dict[str, Any]:
    """What earlier processes wrote for the one that continues; empty if there were none."""
    path = job.folder / BEGUN
    return read_json(path, MadeWith) if path.exists() else {}


def _store(job: Job, S: SyntheticSet, made_with: Mapping[str, Any], seconds: float, peak: float) -> dict[str, Any]:
    digest = S.save(job.folder / "set.safetensors", job.dtype)
    if S.snapshots:
        tensors = {f"k{k}": images.to("cpu", job.dtype) for k, images in S.snapshots.items()}
        write_tensors(job.folder / SNAPSHOTS, tensors, {"format": SNAPSHOTS_FORMAT, "set": digest})
    record = {
        "method": job.method,
        "budget": job.budget,
        "recipe": S.recipe,
        "recipe_hash": json_digest(S.recipe),
        **({} if job.coreset else {"schedule": job.recipe.describe_schedule()}),
        "data": {"name": job.data.name, "fingerprint": job.data.fingerprint, "origin": job.data.origin},
        "set": digest,
        **made_with,
        "seconds": seconds,
        "peak_memory_bytes": None if math.isnan(peak) else peak,
        "history": S.history,
    }
    write_json(job.folder / "run.json", record)
    return record


def _evaluated(
    folder: Path,
    S: SyntheticSet | Data,
    data: Data,
    of: str,
    network: str,
    n: int,
    seed: int,
    protocol: Protocol,
    device: torch.device,
    progress: bool,
    deadline: float | None,
) -> Evaluation:
    """Phase 2: train and test networks, from the first that is not stored. Each is stored as it is done.

    ``of`` is the digest of the set, or the fingerprint of the data.
    """
    path = folder / f"accuracy-{slug(network)}.json"
    stored = stored_evaluation(folder, network, seed, resolve_protocol(S, data, network, protocol), of)
    if stored and stored.trained >= n:
        _forget_training(folder, network)
        return stored.first(n)
    made_with = {"set": of, **made_with_here(device, read_accuracies(path, of) if stored else {})}

    def store(found: Evaluation) -> None:
        write_json(path, evaluation_to_json(_with_time_of(stored, found)) | made_with)

    found = evaluate(
        S, data, network, n, seed, protocol=protocol, device=device, progress=progress,
        known=stored or (), each=store, deadline=deadline, checkpoint=folder,
    )  # fmt: skip
    _forget_training(folder, network)
    return _with_time_of(stored, found)


def _forget_training(folder: Path, network: str) -> None:
    """Delete what killed processes left of networks whose accuracies are stored."""
    for path in folder.glob(f"training-{slug(network)}-*.safetensors"):
        if path.stem.rpartition("-")[2].isdecimal():
            path.unlink(missing_ok=True)


def stored_snapshots(folder: Path, S: SyntheticSet, of: str) -> dict[int, SyntheticSet]:
    """The stored snapshots of S, whose digest is ``of``, by number of outer iterations.

    Raises
    ------
    ValueError
        If they are damaged, or of another set.
    """
    path = folder / SNAPSHOTS
    if not path.exists():
        return {}
    tensors, metadata = read_tensors(path, SNAPSHOTS_FORMAT, REST)
    try:
        if metadata.get("set") != of:
            raise ValueError("it belongs to another set")
        images = {int(name.removeprefix("k")): x for name, x in tensors.items()}
        return {k: replace(S, images=images[k].to(S.images.dtype)) for k in sorted(images)}
    except ValueError as error:
        raise damaged(path, error, REST) from error


def _traced(
    job: Job,
    S: SyntheticSet,
    of: str,
    final: Evaluation,
    device: torch.device,
    progress: bool,
    deadline: float | None,
) -> dict[int, tuple[SyntheticSet, Evaluation]]:
    """The stored snapshots of S with their accuracies, which are measured if they are missing."""
    if job.n_trace == 0:
        return {}
    path = job.folder / "trace.json"
    stored = read_trace(path, of)

    def store(k: int, before: Evaluation | None, found: Evaluation) -> None:
        stored[k] = _with_time_of(before, found)
        write_json(path, {"set": of, "trace": {str(at): evaluation_to_json(e) for at, e in stored.items()}})

    trace = {}
    for k, S_k in stored_snapshots(job.folder, S, of).items():
        before = stored.get(k)
        if before and (before.network, before.seed, before.protocol) != (final.network, final.seed, final.protocol):
            before = None
        if before is None or before.trained < job.n_trace:
            if torch.equal(S_k.images, S.images) and final.trained >= job.n_trace:
                store(k, None, final.first(job.n_trace))
            else:
                evaluate(
                    S_k, job.data, final.network, job.n_trace, job.recipe.seed, protocol=job.protocol,
                    device=device, progress=progress, known=before or (),
                    each=partial(store, k, before), deadline=deadline, checkpoint=job.folder,
                )  # fmt: skip
        trace[k] = (S_k, stored[k].first(job.n_trace))
    return trace


def _with_time_of(before: Evaluation | None, found: Evaluation) -> Evaluation:
    """``found``, with the seconds of the networks that were trained before added to its own."""
    return replace(found, seconds=found.seconds + before.seconds) if before else found
