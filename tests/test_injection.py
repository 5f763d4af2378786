"""Names may hold anything: on every page, and in results/README.md, they are shown as they are and nothing runs."""

import copy
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import jupytext
import matplotlib.text
import pandas as pd
import pytest
import torch
from conftest import make_data
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import Markdown
from IPython.utils.capture import capture_output
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

import gmlib as gm
import gmreport as report
from gmlib import recipe as recipes
from gmlib.files import read_json, write_json
from gmlib.runs import layout, overview, readback, shipped, store

ROOT = Path(__file__).parent.parent
BAD = (
    "x <img src=x onerror=alert(1)> | `b` $\\frac$ [a](javascript:alert(1)) \"q\" 'q' \\| *s* _u_ <!-- $(touch run) "
    "{ref}`x` &lt; </script><script>alert(1)</script>\n\n# head\n\n```{raw} html\n<img src=x onerror=alert(1)>\n```"
)
AS_SHOWN = " ".join(BAD.split())
TINY = recipes.Budget(
    recipe={"width": 2, "depth": 1, "batch_real": 2, "outer_loops": 2}, many={"inner_loops": 2, "zeta_theta": 1},
    sets=2, networks=1, epochs=1,
)  # fmt: skip
# Parameters that make a chapter fast.
FEW = {
    "architectures": {"sources": ["convnet"], "targets": ["convnet", "mlp", "lenet"]},
    "comparison": {"whole_networks": 1},
    "efficiency": {"rounds": 2, "networks": 1},
    "how": {"distances": ["d1", "d1 + d2"]},
    "hypothesis": {"starts": 1, "real_starts": 1, "max_steps": 3, "path_steps": 3, "eps": [0.5]},
    "playground": {"networks": 1},
    "what": {"methods": ["DC", "M"]},
    "where": {"methods": ["MD", "MDO"]},
}


KNOWN = ("data:image/png;base64,", "_static/sets/", "api/", "#")  # how a link or the address of a picture begins
CHAPTERS = {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.md")}


class Seen(HTMLParser):
    """What a browser would see in HTML: its text, and everything that could run."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.text, self.runs, self._in_script = "", [], False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        given = {name: (value or "") for name, value in attributes}
        self._in_script = tag == "script" and given.get("type") != "application/json"
        self.runs += [f"<{tag} {name}>" for name in given if name.startswith("on")]
        links = [given[name] for name in ("src", "href") if name in given]
        self.runs += [link[:40] for link in links if not link.startswith(KNOWN) and link not in CHAPTERS]
        if tag in ("iframe", "object", "embed", "style", "link", "h1", "h2"):
            self.runs.append(f"<{tag}>")

    def handle_data(self, data):
        if not self._in_script:
            self.text += data
        elif not data.lstrip().startswith("document.querySelectorAll('#gm-slider-"):
            self.runs.append(data)

    def handle_endtag(self, tag):
        self._in_script = False

    @property
    def line(self) -> str:
        return " ".join(self.text.split())


def markdown(text: str) -> str:
    """Markdown as the book renders it."""
    extensions = {"amsmath", "colon_fence", "deflist", "dollarmath"}
    return create_md_parser(MdParserConfig(enable_extensions=extensions), RendererHTML).render(text)


@pytest.fixture(scope="module")
def shell():
    main = sys.modules["__main__"]  # the shell puts its own in its place
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    yield shell
    InteractiveShell.clear_instance()
    sys.modules["__main__"] = main


@pytest.fixture(scope="module")
def data():
    made = make_data(counts=(6, 6), dtype=torch.float32, n_test=6)
    return replace(made, name=BAD, origin=BAD, classes=(BAD, f"{BAD} 2"))


@pytest.fixture(scope="module")
def stored(data, tmp_path_factory):
    """Stored runs with such a name in every field of text that a reader accepts."""
    root = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        for budget in ("lite", "paper"):
            patch.setitem(recipes.BUDGETS, budget, TINY)
            place = shipped.folder(budget, root)
            for method, seed in product(("random", "DC", "M", "MD"), (0, 1)):
                options = {"seed": seed, "results_dir": place, "device": "cpu", "progress": False}
                made = store.run(data, method, 1, budget=budget, **options)
                descend = partial(gm.reach, made.S, data=data, device="cpu", progress=False, **DESCENT)
                settings = {**DESCENT, "set": made.S.fingerprint}
                store.cached_table(made.folder / "reach.json", settings, descend, device="cpu")
        for path in [*root.rglob("run.json"), *root.rglob("accuracy-*.json")]:
            assert plant(path)
    return root


DESCENT = {"eps": [0.5], "n_starts": 1, "lr": 0.1, "max_steps": 3, "width": 2, "depth": 1}


def plant(path: Path) -> list[tuple]:
    """Put BAD into each text of a stored file, unless it cannot be read then. Returns the places."""
    content, planted = read_json(path), []
    keep = ["method"] if "/M/" in path.as_posix() else ["method", "budget", "network"]  # pages choose by these
    for keys in [keys for keys in texts(content) if keys[0] not in keep]:
        changed = copy.deepcopy(content)
        at(changed, keys[:-1])[keys[-1]] = f"{BAD} {at(changed, keys)}"
        write_json(path, changed)
        with suppress(ValueError):
            (layout.read_record(path.parent) if path.name == "run.json" else layout.read_evaluation(path))
            content = changed
            planted.append(keys)
    write_json(path, content)
    return planted


def texts(content, above=()):
    """The places of all texts in JSON."""
    found = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in found:
        yield from [(*above, key)] if isinstance(value, str) else texts(value, (*above, key))


def at(content, keys):
    for key in keys:
        content = content[key]
    return content


def run_page(page: Path, shell, **parameters) -> list[dict]:
    """The outputs of a page's cells, each by MIME type."""
    shell.reset(new_session=False)
    outputs = []
    for cell in jupytext.read(page).cells:
        if cell.cell_type == "code":
            with capture_output() as captured:
                done = shell.run_cell(cell.source)
            done.raise_error()
            outputs += [output.data for output in captured.outputs]
            if done.result is not None:  # a page shows the value of a cell's last line too
                outputs.append(shell.display_formatter.format(done.result)[0])
            if "parameters" in cell.metadata.get("tags", []):
                assert set(parameters) <= set(shell.user_ns), "the chapter has these parameters"
                shell.user_ns.update(parameters)
    return outputs


PAGES = [*sorted((ROOT / "notebooks").glob("*.md")), *(ROOT / "book" / f"{name}.md" for name in ("claims", "sets"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_shows_names_as_they_are(page, shell, data, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "FOLDER", stored)
    monkeypatch.setattr(gm, "load_data", lambda *words, **options: data)
    monkeypatch.setattr(report, "stored_benchmarks", dict)
    monkeypatch.setattr(report, "stored_together", dict)
    monkeypatch.setattr(report, "stored_growth", dict)
    for budget in ("smoke", "lite", "paper"):
        monkeypatch.setitem(recipes.BUDGETS, budget, TINY)
    few = {}
    if page.parent.name == "notebooks":
        common = {"dataset": BAD, "ipc": 2, "size": 8, "device": "cpu", "results_dir": str(tmp_path / "runs")}
        few = common | {"sets": 1, "networks": 1} | FEW[page.stem]
    outputs = run_page(page, shell, **few)
    seen = [Seen(data.get("text/html") or markdown(data.get("text/markdown", ""))) for data in outputs]
    assert [what for each in seen for what in each.runs] == []
    assert any(AS_SHOWN in each.line for each in seen), "shown, and as it is"


def test_the_readme_of_results_is_a_table_of_names_as_they_are(stored, tmp_path):
    text = overview.readme(f"{overview.BEGIN}\n{overview.END}", stored)
    html = MarkdownIt("commonmark").enable("table").render(text)
    seen = Seen(html)
    assert seen.runs == [] and AS_SHOWN in seen.line
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    assert len(rows) == 3 and all(len(re.findall("<t[dh]>", row)) == 7 for row in rows)
    for command in overview.made_with(stored)["command"]:
        assert BAD in shlex.split(command)
        said = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {command}"], cwd=tmp_path, capture_output=True, text=True
        )
        assert BAD in said.stdout.split("\0") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", [BAD, "- x", "1. x", "12) x", "# x", "+++", "---", "(a)=", "% x", ": x", "    x", "=="]
)
def test_a_name_in_markdown_is_its_text(name):
    for line in (report.md(name), f"**{report.md(name)}**: 1", f"- {report.md(name)}"):
        seen = Seen(markdown(line))
        assert seen.runs == [] and " ".join(name.split()) in seen.line
    assert re.fullmatch(r"<p>.*</p>\s*", markdown(report.md(name)), re.DOTALL)


@pytest.mark.parametrize(
    "name", ["MD", "multi,d1+d2,fixed", "lr_images=0.01", "Fashion-MNIST", "12.5", "a.b/c_d", "MD@lenet"]
)
def test_a_plain_name_stays_readable_in_the_source(name):
    assert report.md(name) == name


def sentences():
    """Sentences about files and tables that no page of the tests above has."""
    two = pd.concat([accuracies(), accuracies(f"{BAD} mlp")])
    sources = {BAD: f"{BAD} 1", "M": f"{BAD} 2"}
    log = {"data": {"name": BAD, "origin": BAD}, "stopped": BAD, "outer_iterations": 1}
    measured = {"methods": [BAD], "device_name": BAD, "threads": 1}
    measured["median"] = dict.fromkeys(("apart, float32", "together, float32", "together, bf16"), 1.0)
    rows = [dict.fromkeys(report.faults.COUNTS, 1) | {"kind": BAD, "what": BAD}]
    pairs = {"dataset": [BAD] * 2, "ipc": 1, "budget": BAD, "difference": [0.0, 1.0], "n": 1}
    yield report.together_sentence({BAD: measured})
    group = dict.fromkeys(("worker_hours", "longest_job_hours", "shortest_possible_hours"), 1.0)
    group |= {"hours": {"1": 1.0}, "longest_job": BAD}
    numbers = dict.fromkeys(("outer_loops", "networks_each", "figures", "figures_of_cells"), 1)
    ways = {BAD: {"median": 1.0, "per_job": None}, f"{BAD} 2": {"median": 1.0, "per_job": 1.0}}
    grown = {"device_name": BAD, "device": BAD, "grid": {"jobs": 1, "ways": ways}}
    grown["paper"] = {"groups": {"all": group}, **numbers}
    yield report.grid_sentence({BAD: grown})
    yield report.hours_sentence({BAD: grown})
    yield report.log_sentence(log | {"recipe": gm.Recipe(dataset=BAD).as_dict()})
    yield report.schedule_sentence(BAD, [[1, 2], [2, 3]], [2, 1])
    yield report.faults_sentence({"rows": rows})
    yield report.precision_effect(pd.DataFrame(pairs))
    yield report.spreads_sentence(report.spreads(accuracies().assign(method=lambda t: t["method"] + " x")))
    yield report.best_source(two, BAD, sources, ["convnet"])
    yield report.best_target(two, sources, [f"{BAD} mlp", "convnet"])
    yield report.generalisation(two, sources, [f"{BAD} mlp"], control="M")
    yield report.time_to(pd.DataFrame({"method": []}), base=BAD)
    verdict = report.verdict(accuracies(), BAD, "M")
    assert BAD in str(verdict), "plain text is not escaped"
    yield Markdown(verdict._repr_markdown_())


def accuracies(network="convnet"):
    rows = [(BAD, 1, method, BAD, s, network, 0, 50.0 + s) for method in (BAD, "M") for s in (0, 1)]
    return pd.DataFrame(rows, columns=readback.COLUMNS)


def test_a_sentence_shows_names_as_they_are():
    for sentence in sentences():
        seen = Seen(markdown(sentence.data))
        assert seen.runs == [] and AS_SHOWN in seen.line, sentence.data


def test_a_table_shows_names_as_they_are():
    rows = [dict.fromkeys(report.faults.COUNTS, 1) | {"kind": BAD, "what": BAD}]
    faults = {"rows": rows, "machine": {BAD: BAD}, "commit": BAD, "seconds": 1.0}
    differences = report.forest(accuracies(), [(BAD, "M")], caption=BAD), report.alike(accuracies(), BAD, "M")
    for table in (report.accuracy_table(accuracies()), report.faults_table(faults), *differences):
        seen = Seen(table._repr_html_())
        assert seen.runs == [] and AS_SHOWN in seen.line


@pytest.mark.parametrize("name", [BAD, "$a", "$a$", r"\$x", "a\\b", "100 $ and 200 $"])
def test_a_name_in_a_figure_is_its_text(name):
    rows = [(name, 1, method, "lite", s, "convnet", 0, 50.0 + s) for method in (name, "M") for s in (0, 1)]
    fig = report.accuracy_figure(pd.DataFrame(rows, columns=readback.COLUMNS))
    title, first = fig.axes[0].get_title(), fig.axes[0].get_xticklabels()[1].get_text()
    fig.to_html("x")
    for shown in (title, first):
        text, is_maths = matplotlib.text.Text()._preprocess_math(shown)
        assert not is_maths and text.startswith(" ".join(name.split())[:40])
