"""Run a notebook as a batch job, with other parameters:

    python -m gmreport.batch notebooks/what.md what-mnist.ipynb -p dataset MNIST -p ipc 1,10 -p budget lite

NOTEBOOK is MyST markdown (.md) or an .ipynb file. It runs where the command is given, with the Python that runs the command,
and OUT (.ipynb) is the notebook with all it printed and drew, written whole at the end or not at all. A parameter that the
notebook does not have, a file that is not there or cannot be written, is said in one sentence before anything runs; a value that
does not fit is told by the notebook.

A value is read as papermill reads it: True, False, None, a whole number, a number, else text. Several values go with commas
(-p methods DC,M) or as a list in brackets (-p ipc [1,10], quoted where a name has commas: -p methods '["DC", "multi,d1,fixed"]').

Exit status: 0 done; 1 a cell failed (OUT holds the error) or OUT could not be written; 2 bad input, nothing was run;
130 interrupted and 143 terminated, nothing was written.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import jupytext
import nbformat
import yaml
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import DeadKernelError
from traitlets import default

from gmlib.files import write_atomically

BETWEEN = 10  # seconds between two lines of one progress bar

# papermill imports this module, for MyST below, while it is itself being imported: it can be imported inside functions only.
# It warns of every input that does not end in .ipynb, and for myst:// that is meant.
warnings.filterwarnings("ignore", r"The specified file \(myst://", UserWarning)


class MyST:
    """papermill's reader of MyST markdown, an entry point of its group papermill.io: `papermill myst://notebooks/what.md OUT`."""

    @staticmethod
    def read(path: str) -> str:
        return nbformat.writes(jupytext.read(path.removeprefix("myst://")))

    @staticmethod
    def pretty_path(path: str) -> str:
        return path


def run(notebook: str | os.PathLike, out: str | os.PathLike, parameters: dict[str, Any]) -> None:
    """Execute a notebook with these parameters and write it, with its outputs, to `out`. Progress goes to stderr.

    notebook: .md (MyST) or .ipynb with a cell tagged "parameters"; out: .ipynb, replaced if it is there, its folder made if not.

    Raises ValueError in one sentence for input that does not fit, before anything is run or written;
    papermill.exceptions.PapermillExecutionError for a failing cell, once `out` holds the notebook up to there, the error marked;
    OSError where `out` cannot be written.
    """
    from papermill.engines import NBClientEngine
    from papermill.execute import prepare_notebook_metadata, raise_for_execution_errors
    from papermill.parameterize import parameterize_notebook

    notebook, out, begun = Path(notebook), Path(out), time.monotonic()
    nb = _read(notebook, parameters)
    _prepare(out, notebook)
    if parameters:
        nb = parameterize_notebook(nb, parameters, kernel_name="python3", language="python")
    prepare_notebook_metadata(nb, str(notebook), str(out), report_mode=False)
    names, running = _names(nb), 0
    stdout, stderr = _Log(sys.stdout), _Log(sys.stderr)

    def note(text: str) -> None:
        stdout.end()
        stderr.end()
        stderr.write(f"{timedelta(seconds=round(time.monotonic() - begun))} {text}\n")

    def begin(cell: nbformat.NotebookNode, cell_index: int) -> None:
        nonlocal running
        running = cell_index
        note(names[cell_index])

    try:
        NBClientEngine.execute_notebook(
            nb, "python3", progress_bar=False, autosave_cell_every=0, stdout_file=stdout, stderr_file=stderr,
            on_cell_execute=begin, coalesce_streams=True, kernel_manager_class=_ThisPython,
            # The kernel's own messages, that it listens on TCP and that it was told to stop: what cells raise comes another way.
            extra_arguments=["--log-level=CRITICAL"],
        )  # fmt: skip
    except DeadKernelError:
        died = {"ename": "DeadKernelError", "evalue": "the kernel died, often for want of memory"}
        nb.cells[running].outputs.append(nbformat.v4.new_output("error", **died, traceback=[died["evalue"]]))
    finally:
        stdout.end()
        stderr.end()
    try:
        raise_for_execution_errors(nb, None)
    finally:
        write_atomically(out, nbformat.writes(nb).encode())
    note(f"done: {out}")


def _read(notebook: Path, parameters: dict[str, Any]) -> nbformat.NotebookNode:
    """The notebook as papermill wants it; ValueError unless it is one that takes these parameters."""
    from papermill.execute import remove_error_markers
    from papermill.iorw import load_notebook_node
    from papermill.translators import PythonTranslator

    if not notebook.is_file() or notebook.suffix not in (".md", ".ipynb"):
        wrong = "does not exist" if not notebook.exists() else "is no notebook"
        raise ValueError(f"{notebook} {wrong}: give an .md or .ipynb file")
    try:
        nb = remove_error_markers(load_notebook_node(jupytext.read(notebook)))
    except Exception as error:  # of any kind, by what is wrong in the file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{notebook} cannot be read as a notebook ({reason}): give another, or mend it") from error
    cell = next((cell for cell in nb.cells if "parameters" in cell.metadata.tags), None)
    if cell is None:
        raise ValueError(f'{notebook} has no cell tagged "parameters": tag the cell that sets their defaults')
    known = [parameter.name for parameter in PythonTranslator.inspect(cell)]
    for name in parameters:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}? It" if close else f"{notebook.name}"
            raise ValueError(f"{notebook.name} has no parameter {name!r}: {hint} takes {', '.join(known)}")
    return nb


def _prepare(out: Path, notebook: Path) -> None:
    """Make the folder of `out`; ValueError unless `out` can be written there, and is not the notebook itself."""
    if out.suffix != ".ipynb" or out.is_dir():
        raise ValueError(f"the output {out} does not fit: give a file that ends in .ipynb")
    if out.resolve().exists() and out.resolve().samefile(notebook):
        raise ValueError(f"the output {out} would replace the notebook: give another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {out.parent} cannot be made ({error.strerror}): choose another") from error
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"nothing can be written to the folder {out.parent}: choose another")


def _names(nb: nbformat.NotebookNode) -> dict[int, str]:
    """Index of each code cell -> its number, as In [number] has it, and the heading above it."""
    headings, heading = {}, ""
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            heading = [heading, *re.findall(r"^#+ (.+)", cell.source, flags=re.MULTILINE)][-1]
        elif cell.cell_type == "code" and cell.source.strip():
            headings[index] = heading
    return {
        index: f"cell {number} of {len(headings)}" + (f", {heading}" if heading else "")
        for number, (index, heading) in enumerate(headings.items(), start=1)
    }


class _ThisPython(AsyncKernelManager):
    """Starts "python3" with the Python that runs this, whatever kernels of that name are installed."""

    @default("kernel_spec_manager")
    def _only_the_native_kernel(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


class _Log:
    """What cells print, line by line: no colours, and of a progress bar one line every BETWEEN seconds and the last."""

    def __init__(self, stream: TextIO):
        self.stream, self.rest, self.shown = stream, "", {}

    def write(self, text: str) -> None:
        text = re.sub(
            r"\x1b\[[0-?]*[ -/]*[@-~]", "", text.replace("\x1b[A", "\r")
        )  # tqdm leaves a second bar upwards
        seen = self.rest
        *lines, self.rest = re.split(r"(?=\r)|(?<=\n)", self.rest + text)
        if self.rest.startswith("\r"):  # a state of a bar, which has no end of line
            lines.append(self.rest)
        for line in lines:
            if line != seen or not line.startswith("\r"):
                self._show(line)

    def _show(self, line: str) -> None:
        shown = line.strip("\r\n").rstrip()
        if line.startswith("\r"):
            bar, now = shown.rpartition(": ")[0], time.monotonic()
            when, what = self.shown.get(bar, (-BETWEEN, ""))
            if shown == what or (now - when < BETWEEN and not line.endswith("\n")):
                return
            self.shown[bar] = now, shown
        if shown:
            self.stream.write(shown + "\n")

    def flush(self) -> None:
        self.stream.flush()

    def end(self) -> None:
        """Show what has no end of line yet."""
        if self.rest:
            self.write("\n")
        self.flush()


def _value(name: str, text: str) -> Any:
    """What the command line says for a parameter."""
    from papermill.cli import _resolve_type

    if not text.startswith("["):
        return _resolve_type(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}={text} is no list: write it as [1,10]") from error


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from papermill.exceptions import PapermillExecutionError

    parser = argparse.ArgumentParser(
        "python -m gmreport.batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebook", metavar="NOTEBOOK")
    parser.add_argument("out", metavar="OUT")
    values = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", dest="given", help="a parameter and its value, as often as needed", **values)
    asked = parser.parse_args(arguments)
    parameters: dict[str, Any] = {}
    try:
        for name, text in asked.given:
            if name in parameters:
                raise ValueError(
                    f"the parameter {name} is given twice: give several values with commas, as {name} 1,10"
                )
            parameters[name] = _value(name, text)
        run(asked.notebook, asked.out, parameters)
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}".strip(": ").splitlines()[0]
        return _failed(1, f"cell {error.exec_count} of {asked.notebook} failed, as {asked.out} shows: {reason}")
    except ValueError as error:
        return _failed(2, str(error))
    except OSError as error:
        return _failed(1, str(error))
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        return _failed(
            128 + number, "stopped, nothing was written; the same command goes on from the runs that are stored"
        )
    return 0


def _failed(status: int, reason: str) -> int:
    print(f"gmreport.batch: {reason}", file=sys.stderr)
    return status


def _stop(number: int, frame: Any) -> None:
    """End on a signal as if by an error, so that the kernel is stopped on the way out."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
