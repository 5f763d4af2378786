"""The project's own files agree with each other."""

import re
import tomllib
from pathlib import Path

import yaml

import gmlib

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def split(requirement):
    name, bounds = re.fullmatch(r"([\w.-]+)(.*)", requirement.strip()).groups()
    return re.sub(r"[-_.]+", "-", name).lower(), bounds.replace(" ", "")


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted():
    return dict(map(split, project()["dependencies"] + project()["optional-dependencies"]["dev"]))


def pins():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("==") for line in lines)


def test_environment_yml_is_the_same_list():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    conda = dict(split(entry) for entry in listed if isinstance(entry, str))
    assert conda.pop("python") == project()["requires-python"]
    assert conda.pop("pip") == ""
    assert from_pip.pop() == "--editable ."
    found = {CONDA_NAMES.get(name, name): bounds for name, bounds in conda.items()} | dict(map(split, from_pip))
    assert found == wanted()


def test_the_lock_pins_every_dependency_within_its_bounds_and_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|^\s*-|@", text, flags=re.MULTILINE)
    locked = pins()
    assert not any("+" in version for version in locked.values()), "a local build is on no index"

    def number(version):
        return tuple(int(part) for part in re.findall(r"\d+", version)[:3])

    for extra in (project()["dependencies"], *project()["optional-dependencies"].values()):
        for name, bounds in map(split, extra):
            assert name in locked, f"{name} is not locked"
            for bound in filter(None, bounds.split(",")):
                operator, version = re.fullmatch(r"(>=|<)(.*)", bound).groups()
                assert (number(locked[name]) >= number(version)) == (operator == ">="), (
                    f"{name}=={locked[name]} {bound}"
                )


def test_torch_and_torchvision_belong_together():
    torch, vision = pins()["torch"].split("."), pins()["torchvision"].split(".")
    assert int(torch[0]) == 2 and int(vision[1]) == int(torch[1]) + 15  # 2.11 goes with 0.26, and so on
    assert pins()["torch"] != "2.13.0", "its CPU wheel cannot be imported together with torchvision"


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == gmlib.__version__
    assert f"## {gmlib.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_book_is_linked_to_the_root():
    for name in ("_config.yml", "_toc.yml", "notebooks"):
        link = ROOT / "book" / name
        assert link.is_symlink() and link.resolve() == ROOT / name


def test_notebooks_hold_no_algorithm_and_stay_short():
    notebooks = sorted((ROOT / "notebooks").glob("*.md"))
    assert notebooks
    for notebook in notebooks:
        text = notebook.read_text()
        code = "".join(re.findall(r"```\{code-cell\}.*?\n(.*?)```", text, flags=re.DOTALL))
        assert len(text.splitlines()) < 300, notebook.name
        assert ":tags: [parameters]" in text, notebook.name
        assert not re.search(r"\bimport torch|\.backward\(|\bdef \w|autograd|optim\.", code), notebook.name


def imported(text, dots):
    """Names of the modules that a module imports from `dots` packages up."""
    found = set(re.findall(rf"^ *from {re.escape(dots)}(\w+)[\w.]* import", text, flags=re.MULTILINE))
    for names in re.findall(rf"^ *from {re.escape(dots)} import (.*)", text, flags=re.MULTILINE):
        found |= {name.split(" as ")[0].strip() for name in names.split(",")}
    return found


def test_data_flows_one_way():
    """A module imports only from those left of it."""
    order = [
        "checks",
        "how",
        "what",
        "where",
        "memory",
        "networks",
        "augment",
        "recipe",
        "data",
        "gradients",
        "coreset",
    ]
    order += ["condense", "evaluate", "reach", "store", "cost", "paper", "shipped", "report", "batch"]
    gmlib_, report = (
        ROOT / "gmlib",
        ["style", "numbers", "figures", "tables", "benchmarks", "costs", "sliders", "deviations"],
    )
    report += ["claims", "playground"]
    assert set(order) == {path.stem for path in gmlib_.glob("*.py")} - {"__init__"} | {"report"}
    assert set(report) == {path.stem for path in (gmlib_ / "report").glob("*.py")} - {"__init__"}
    for place, module in enumerate(order):
        if module == "report":
            continue
        used = imported((gmlib_ / f"{module}.py").read_text(), ".") - {"__version__"}
        assert used <= set(order[:place]), f"{module} imports {sorted(used - set(order[:place]))}"
    for place, module in enumerate(report):
        text = (gmlib_ / "report" / f"{module}.py").read_text()
        assert imported(text, ".") <= set(report[:place]), module
        assert imported(text, "..") <= set(order[: order.index("report")]), module
