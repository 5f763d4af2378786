"""Run a notebook as a batch job, with other parameters:

    python -m gmreport.batch notebooks/what.md what-mnist.ipynb -p dataset MNIST -p ipc 1,10 -p budget lite

NOTEBOOK is MyST markdown (.md) or an .ipynb file. It runs in the current folder, with the Python that runs this
command. OUT (.ipynb) is the notebook with its outputs, written when the job ends. What cells print goes to stdout.

A value is True, False, None, a number or text. Give several values with commas (-p methods DC,M), or as a list in
brackets if a value has commas itself (-p methods '["DC", "multi,d1,fixed"]').

Exit status: 0 done; 1 a cell failed (OUT holds the error) or OUT cannot be written; 2 bad input, nothing was run;
130 interrupted and 143 terminated, nothing was written.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import jupytext
import nbformat
import yaml
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import DeadKernelError
from traitlets import default

# papermill imports this module for `MyST` while it is itself being imported, so only functions may import papermill.
# It warns about every input that does not end in .ipynb.
warnings.filterwarnings("ignore", r"The specified file \(myst://", UserWarning)


class MyST:
    """Lets papermill read MyST markdown: ``papermill myst://notebooks/what.md OUT``."""

    @staticmethod
    def read(path: str) -> str:
        """The notebook as JSON."""
        return nbformat.writes(jupytext.read(path.removeprefix("myst://")))

    @staticmethod
    def pretty_path(path: str) -> str:
        """The path as papermill prints it."""
        return path


class _ThisPython(AsyncKernelManager):
    """Starts the kernel with the Python that runs this module, even if another "python3" is installed."""

    @default("kernel_spec_manager")
    def _native_kernel_only(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


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
        self.index = cell_index
        if cell.cell_type == "markdown":
            self.heading = [self.heading, *re.findall(r"^#+ (.+)", cell.source, re.MULTILINE)][-1]
        elif cell.cell_type == "code" and cell.source.strip():
            self.number += 1
            self.note(f"cell {self.number} of {self.n_cells}, {self.heading}".rstrip(", "))


def _run(notebook: Path, out: Path, parameters: dict[str, Any]) -> None:
    """Execute a notebook and write it with its outputs, also if a cell fails. Then raise papermill's error."""
    from papermill import PapermillExecutionError, execute_notebook

    source = _check(notebook, out, parameters)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".batch-", dir=out.parent)
    except OSError as error:
        raise ValueError(f"cannot write to the folder {out.parent} ({error.strerror}): choose another") from error
    code_cells = [c for c in jupytext.read(notebook).cells if c.cell_type == "code" and c.source.strip()]
    log = _Log(sys.stdout, len(code_cells) + bool(parameters))  # papermill adds a cell for the parameters
    with folder:
        temporary, failure = Path(folder.name, out.name), None
        try:
            execute_notebook(
                source, temporary, parameters, kernel_name="python3", language="python", progress_bar=False,
                stdout_file=log, stderr_file=log, on_cell_start=log.cell_starts, coalesce_streams=True,
                kernel_manager_class=_ThisPython,
                shutdown_kernel="immediate",  # after a signal, a graceful end would wait for the cell
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
        nbformat.write(nb, temporary)
        os.replace(temporary, out)
    log.note(f"{'failed' if failure else 'done'}, see {out}")
    if failure:
        raise failure


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
    constants = {"True": True, "False": False, "None": None}
    if text in constants:
        return constants[text]
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    try:
        return yaml.safe_load(text) if text.startswith("[") else text
    except yaml.YAMLError as error:
        raise ValueError(f"{text} is not a list: write it as [1,10]") from error


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from papermill import PapermillExecutionError

    parser = argparse.ArgumentParser(
        "python -m gmreport.batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebook", metavar="NOTEBOOK", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="may be repeated")
    options = parser.parse_args(arguments)
    try:
        parameters = {name: _value(text) for name, text in options.p}
        if len(parameters) < len(options.p):
            raise ValueError("a parameter is given twice: give several values with commas, as -p ipc 1,10")
        _run(options.notebook, options.out, parameters)
        return 0
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}".strip(": ").splitlines()[0]
        status, message = 1, f"cell {error.exec_count} of {options.notebook} failed: {reason}"
    except ValueError as error:
        status, message = 2, str(error)
    except OSError as error:
        status, message = 1, f"cannot write {options.out}: {error}"
    except KeyboardInterrupt as stop:
        status = 128 + (stop.args[0] if stop.args else signal.SIGINT)
        message = "stopped, nothing was written: give the same command again to continue from the stored runs"
    print(f"gmreport.batch: {message}", file=sys.stderr)
    return status


def _interrupt(number: int, frame: Any) -> None:
    """Leave as on an error, so that the kernel is stopped."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    logging.disable()  # a kernel that is killed makes nbclient and asyncio log tracebacks; `main` reports the reason
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds; the kernel's progress bars end up in a log file
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
