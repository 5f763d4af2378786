"""Run a notebook as a batch job, with other parameters:

    python -m gmreport.batch notebooks/what.md what-mnist.ipynb -p dataset MNIST -p ipc 1,10 -p budget lite

NOTEBOOK is MyST markdown (.md) or an .ipynb file. It runs in the current folder, with the Python that runs this
command. OUT (.ipynb) is the notebook with its outputs, written when the job ends. What cells print goes to stdout.

A value is True, False, None, a finite number or text. Give several values with commas (-p methods DC,M), or as a list
in brackets if a value has commas itself (-p methods '["DC", "multi,d1,fixed"]').

Ctrl-C and SIGTERM let the run that is in progress save its checkpoint first; a second signal ends at once. The same
command continues from the stored runs.

Exit status: 0 done; 1 a cell failed (OUT holds the error) or OUT cannot be written; 2 bad input, nothing was run;
3 the time budget was used up and something is left (OUT says what): run the same command again; 130 interrupted and
143 terminated, OUT was not written.
"""

from __future__ import annotations

import _thread
import argparse
import csv
import difflib
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, TextIO

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import DeadKernelError
from traitlets import default

LONGEST = 10_000  # characters of a value
PATIENCE = 20.0  # seconds for a cell to end after a signal; job schedulers often wait 30 before they kill
BUSY = "another job writes {}: wait for its end, or give another name"

# What the kernel runs on SIGUSR1, and what it is asked at the end. A notebook need not use gmlib.
_LIBRARY = "__import__('sys').modules.get('gmlib.runtime')"
_ON_SIGNAL = (
    f"(lambda s: s.signal(s.SIGUSR1, lambda *_: {_LIBRARY} and {_LIBRARY}.stop_soon()))(__import__('signal'))"
)
_IS_LEFT = f"bool({_LIBRARY} and {_LIBRARY}.OutOfTime.was_raised)"

# papermill imports this module for `MyST` while it is itself being imported, so only functions may import papermill.
# It warns about every input that does not end in .ipynb.
warnings.filterwarnings("ignore", r"The specified file \(myst://", UserWarning)


class MyST:
    """Lets papermill read MyST markdown: ``papermill myst://notebooks/what.md OUT``."""

    @staticmethod
    def read(path: str) -> str:
        """The notebook as JSON."""
        use_this_python()
        return nbformat.writes(jupytext.read(path.removeprefix("myst://")))

    @staticmethod
    def pretty_path(path: str) -> str:
        """The path as papermill prints it."""
        return path


def use_this_python() -> None:
    """Let the kernel "python3" be the Python that runs this, even if JUPYTER_PATH or a user's folder has another.

    For papermill and Jupyter Book, which look the kernel up by its name.
    """
    own = str(Path(sys.prefix, "share", "jupyter"))
    others = [path for path in os.environ.get("JUPYTER_PATH", "").split(os.pathsep) if path not in ("", own)]
    os.environ["JUPYTER_PATH"] = os.pathsep.join([own, *others])


class _ThisPython(AsyncKernelManager):
    """Starts the kernel with the Python that runs this module, even if another "python3" is installed."""

    running: ClassVar[_ThisPython | None] = None

    @default("kernel_spec_manager")
    def _native_kernel_only(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


class _Stop:
    """What SIGINT and SIGTERM do: the kernel is asked to save its work, and the job ends after the present cell."""

    number = 0  # of the first signal
    can_ask = False  # the kernel knows SIGUSR1

    @classmethod
    def on_signal(cls, number: int, frame: Any) -> None:
        is_second = cls.number != 0
        cls.number = cls.number or number
        if is_second or not cls.can_ask or _ThisPython.running is None:
            raise KeyboardInterrupt  # the kernel is interrupted then
        with suppress(OSError):
            os.kill(_ThisPython.running.provisioner.pid, signal.SIGUSR1)
        timer = threading.Timer(PATIENCE, _thread.interrupt_main)
        timer.daemon = True
        timer.start()

    @classmethod
    def check(cls) -> None:
        if cls.number:
            raise KeyboardInterrupt


class _Log:
    """Writes what cells print, without colours, and a note as each cell starts. A progress bar becomes lines."""

    def __init__(self, stream: TextIO, n_cells: int):
        self.stream, self.n_cells = stream, n_cells
        self.start, self.last = time.monotonic(), "\n"  # the last character
        self.index, self.number, self.heading = 0, 0, ""  # of the present cell, In [number]

    def write(self, text: str) -> None:
        text = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", text)  # colours and movements of the cursor
        text = re.sub(r"\r([^\r\n]*)", r"\1\n", text)
        text = re.sub(r"\n+", "\n", self.last + text)[1:]
        self.stream.write(text)
        self.stream.flush()
        self.last = text[-1:] or self.last

    def flush(self) -> None:
        """papermill calls it after `write`, which flushes."""

    def note(self, text: str) -> None:
        self.write(f"\n{time.monotonic() - self.start:.0f} s: {text}\n")

    def cell_starts(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        _Stop.check()
        self.index = cell_index
        if cell.cell_type == "markdown":
            self.heading = [self.heading, *re.findall(r"^#+ (.+)", cell.source, re.MULTILINE)][-1]
        elif cell.cell_type == "code" and cell.source.strip():
            self.number += 1
            self.note(f"cell {self.number} of {self.n_cells}, {self.heading}".rstrip(", "))


def _engine(folder: Path) -> type:
    """papermill's engine, with a kernel that leaves nothing behind and says if something is left to do."""
    from jupyter_core.utils import run_sync
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine

    class Client(PapermillNotebookClient):
        def create_kernel_manager(self) -> _ThisPython:
            km = _ThisPython.running = super().create_kernel_manager()
            km.connection_file = str(folder / "kernel.json")
            km.shutdown_wait_time = 2 * PATIENCE  # it waits half of it before it sends SIGTERM
            return km

        async def async_start_new_kernel_client(self) -> Any:
            kc = await super().async_start_new_kernel_client()
            Path(self.km.connection_file).unlink()  # it was read; a killed job would leave it
            if hasattr(signal, "SIGUSR1"):
                await self._ask(_ON_SIGNAL)
                _Stop.can_ask = True
            return kc

        start_new_kernel_client = run_sync(async_start_new_kernel_client)

        def papermill_execute_cells(self) -> None:
            super().papermill_execute_cells()
            _Stop.check()
            with suppress(DeadKernelError):  # it was reported with its cell
                self.nb.metadata["gmreport"] = {"is_left": run_sync(self._ask)(_IS_LEFT) == "True"}

        async def _ask(self, expression: str) -> str:
            """The value of an expression in the kernel, as text."""
            message = self.kc.execute("", silent=True, user_expressions={"value": expression})
            reply = await self.async_wait_for_reply(message)
            return reply["content"]["user_expressions"]["value"].get("data", {}).get("text/plain", "")

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
            for name in ("input_path", "execution_timeout"):
                options.pop(name, None)
            options["startup_timeout"] = options.pop("start_timeout", 60)
            client = Client(nb_man, kernel_name=kernel_name, timeout=None, **options)
            try:
                client.execute()
            finally:
                _Stop.can_ask = False
                if client.km is not None:  # a signal came while the kernel was starting
                    run_sync(client.km.shutdown_kernel)(now=True)

    return Engine


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A folder beside OUT for what is unfinished. What a killed job left in it is removed.

    Raises
    ------
    ValueError
        If it cannot be made, or another job works in it.
    """
    from filelock import FileLock, Timeout  # torch depends on it

    folder = out.with_name(f".{out.name}.batch")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(BUSY.format(out)) from None
    except OSError as error:
        raise ValueError(f"cannot write to the folder {out.parent} ({error.strerror}): choose another") from error
    try:
        _empty(folder)
        yield folder
    finally:
        _empty(folder)  # while it is locked
        lock.release()
        with suppress(OSError):  # another job may have taken it
            (folder / ".lock").unlink()
            folder.rmdir()


def _empty(folder: Path) -> None:
    for leftover in folder.iterdir():
        if leftover.name != ".lock":
            leftover.unlink()


def _run(notebook: Path, out: Path, parameters: dict[str, Any]) -> bool:
    """Execute a notebook and write it with its outputs, also if a cell fails. Then raise papermill's error.

    Returns True if the time budget was used up and something is left.
    """
    from papermill import PapermillExecutionError, execute_notebook
    from papermill.engines import papermill_engines

    source = _check(notebook, out, parameters)
    code_cells = [c for c in jupytext.read(notebook).cells if c.cell_type == "code" and c.source.strip()]
    log = _Log(sys.stdout, len(code_cells) + bool(parameters))  # papermill adds a cell for the parameters
    with _workplace(out) as folder:
        papermill_engines.register("gmreport", _engine(folder))
        temporary, failure = folder / out.name, None
        try:
            execute_notebook(
                source, temporary, parameters, engine_name="gmreport", kernel_name="python3", language="python",
                progress_bar=False, stdout_file=log, stderr_file=log, on_cell_start=log.cell_starts,
                coalesce_streams=True, kernel_manager_class=_ThisPython,
                extra_arguments=["--log-level=CRITICAL"],  # no messages of the kernel about itself
            )  # fmt: skip
        except PapermillExecutionError as error:
            failure = error
        except DeadKernelError:
            reason = "the kernel died, often because memory ran out"
            failure = PapermillExecutionError(log.index, log.number, "", "DeadKernelError", reason, [reason])
        nb = nbformat.read(temporary, as_version=4)
        nb.metadata.papermill["output_path"] = str(out)
        if failure and failure.ename == "DeadKernelError":  # papermill does not write this error to the notebook
            error = {name: getattr(failure, name) for name in ("ename", "evalue", "traceback")}
            nb.cells[log.index].outputs.append(nbformat.v4.new_output("error", **error))
        is_left = nb.metadata.pop("gmreport", {}).get("is_left", False)
        nbformat.write(nb, temporary)
        os.replace(temporary, out)
    ending = "failed" if failure else "the time budget was used up" if is_left else "done"
    log.note(f"{ending}, see {out}")
    if failure:
        raise failure
    return is_left


def _check(notebook: Path, out: Path, parameters: dict[str, Any]) -> str:
    """The address of the notebook for papermill. Raises ValueError if the input does not fit."""
    from papermill import inspect_notebook

    source = f"myst://{notebook}" if notebook.suffix == ".md" else str(notebook)
    try:
        known = list(inspect_notebook(source))
    except Exception as error:  # its type depends on what is wrong with the file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{notebook} cannot be read as a notebook ({reason}): give an .md or .ipynb file") from error
    if not known:
        raise ValueError(f'{notebook} has no cell tagged "parameters": tag the cell that sets them')
    for name in parameters:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {nearest[0]}? It" if nearest else notebook.name
            raise ValueError(f"{notebook.name} has no parameter {name!r}: {hint} takes {', '.join(known)}")
    if out.suffix != ".ipynb" or out.is_dir():
        raise ValueError(f"the output {out} does not fit: give a file that ends in .ipynb")
    if out.resolve() == notebook.resolve():
        raise ValueError(f"the output {out} would replace the notebook: give another name")
    return source


def _value(text: str) -> Any:
    """Read a value like papermill's command line, whose function is private. A list in brackets is read too."""
    if len(text) > LONGEST:
        raise ValueError(f"the value {text[:20]}... has {len(text)} characters: give at most {LONGEST}")
    if text.startswith("["):
        return _list(text)
    constants = {"True": True, "False": False, "None": None}
    if text in constants:
        return constants[text]
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        if number is float and not math.isfinite(value):
            raise ValueError(f"{text[:20]} is not a finite number: give one that JSON can store")
        return value
    return text


def _list(text: str) -> list:
    """The values of a list in brackets. It is read as a line of CSV, since YAML may name more than fits in memory."""
    try:
        if not text.endswith("]"):
            raise csv.Error
        (words,) = csv.reader([text[1:-1]], skipinitialspace=True, strict=True) if text[1:-1].strip() else ([],)
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{text[:40]} is not a list: write it as [1,10]") from error
    if any("[" in word for word in words):
        raise ValueError(f"{text[:40]} has a list in a list: write it as [1,10]")
    return [_value(word.strip()) for word in words]


def _path(text: str) -> Path:
    """A path with ``~`` expanded. `gmlib.files.as_path` would load torch."""
    return Path(text).expanduser()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from papermill import PapermillExecutionError

    parser = argparse.ArgumentParser(
        "python -m gmreport.batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebook", metavar="NOTEBOOK", type=_path)
    parser.add_argument("out", metavar="OUT", type=_path)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="may be repeated")
    options = parser.parse_args(arguments)
    try:
        parameters = {name: _value(text) for name, text in options.p}
        if len(parameters) < len(options.p):
            raise ValueError("a parameter is given twice: give several values with commas, as -p ipc 1,10")
        if not _run(options.notebook, options.out, parameters):
            return 0
        status, message = 3, f"the time budget was used up and something is left, as {options.out} says: run again"
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}".strip(": ").splitlines()[0]
        status, message = 1, f"cell {error.exec_count} of {options.notebook} failed: {reason}"
    except ValueError as error:
        status, message = 2, str(error)
    except OSError as error:
        status, message = 1, f"cannot write {options.out}: {error}"
    except KeyboardInterrupt:
        status = 128 + (_Stop.number or signal.SIGINT)
        message = f"stopped, {options.out} was not written: give the same command again to continue"
    print(f"gmreport.batch: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    logging.disable()  # a kernel that is killed makes nbclient and asyncio log tracebacks; `main` reports the reason
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds; the kernel's progress bars end up in a log file
    signal.signal(signal.SIGINT, _Stop.on_signal)
    signal.signal(signal.SIGTERM, _Stop.on_signal)
    sys.exit(main())
