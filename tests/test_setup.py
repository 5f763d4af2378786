"""The project's own files agree with each other, and imports follow the order of the rooms."""

import ast
import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import gmlib

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "python-build": "build"}


# ---- dependencies


def project(folder=ROOT):
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def by_name(requirements):
    """{name: bounds} of requirements, without gmlib itself."""
    found = {}
    for text in requirements:
        asked = Requirement(text)
        found[re.sub(r"[-_.]+", "-", asked.name).lower()] = asked.specifier
    return {name: bounds for name, bounds in found.items() if name != "gmlib"}


def all_requirements():
    library = project()
    extras = [text for extra in library["optional-dependencies"].values() for text in extra]
    return by_name(library["dependencies"] + extras + project(ROOT / "book")["dependencies"])


def pins():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("==") for line in lines)


def test_the_library_needs_few_packages():
    needed = {"torch", "numpy", "safetensors", "tqdm", "msgspec"}
    for_the_command = {"tyro", "docstring-parser"}
    assert set(by_name(project()["dependencies"])) == needed | for_the_command


def test_environment_yml_is_the_same_list():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    *from_pip, library, report = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    assert (library, report) == ("--editable .", "--editable ./book")
    conda = by_name([entry for entry in listed if isinstance(entry, str)])
    assert conda.pop("python") == SpecifierSet(project()["requires-python"])
    assert str(conda.pop("pip")) == ""
    assert {CONDA_NAMES.get(name, name): bounds for name, bounds in conda.items()} | by_name(
        from_pip
    ) == all_requirements()


def test_the_lock_pins_every_dependency_within_its_bounds_and_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|^\s*-|@", text, flags=re.MULTILINE)
    locked = pins()
    assert not any("+" in version for version in locked.values()), "a local build is on no index"
    for name, bounds in all_requirements().items():
        assert bounds.contains(locked[name]), f"{name}=={locked[name]} is outside {bounds}"


def test_torch_and_torchvision_belong_together():
    torch, vision = pins()["torch"].split("."), pins()["torchvision"].split(".")
    assert int(torch[0]) == 2 and int(vision[1]) == int(torch[1]) + 15  # 2.11 goes with 0.26, and so on
    assert pins()["torch"] != "2.13.0", "its CPU wheel cannot be imported together with torchvision"


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == gmlib.__version__ == project(ROOT / "book")["version"]
    assert f"## {gmlib.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "gmlib").rglob("__init__.py")}
    assert set(listed) == packages


# ---- the book and its notebooks


def test_the_book_is_linked_to_the_root():
    for name in ("_config.yml", "_toc.yml", "notebooks"):
        link = ROOT / "book" / name
        assert link.is_symlink() and link.resolve() == ROOT / name


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.md")), ids=lambda path: path.stem)
def test_notebooks_hold_no_algorithm(notebook):
    cells = [cell for cell in jupytext.read(notebook).cells if cell.cell_type == "code"]
    assert any("parameters" in cell.metadata.get("tags", []) for cell in cells)
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef), cell.source
            assert not (isinstance(node, ast.Attribute) and node.attr in ("backward", "autograd", "optim")), (
                cell.source
            )
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            source = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "torch" for name in [*modules, *source]), cell.source


def test_every_name_in_the_map_of_the_readme_exists():
    text = (ROOT / "README.md").read_text().partition("| in the paper | in the code |")[2].partition("\n\n")[0]
    names = re.findall(r"`([a-z_]+\.[\w.]+)`", text)
    assert len(names) > 20
    for name in names:
        parts = name.split(".")
        found = importlib.import_module(".".join(["gmlib", *parts[:-1]]))
        assert hasattr(found, parts[-1]), name


def test_made_from_files_only():
    """A folder changes with every byte code that Python writes in it, and `make book` would run everything again."""
    command = ["make", "--no-print-directory", "--eval=sources: ; @printf '%s\\n' $(SOURCES)", "sources"]
    sources = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {"gmlib/speed/forward.py", "book/gmreport/front.py", "book/gmreport/paper.csv"} < set(sources)
    assert all((ROOT / name).is_file() for name in sources)


# ---- rooms: a module imports only from rooms to the left of its own, and from its own

ROOMS = [
    {"how", "where", "what"},
    {"networks", "augment"},
    {"speed"},
    {"recipe"},
    {"data", "datasets", "sets", "exchange", "pictures"},
    {"lines", "draws", "algorithm"},
    {"checkpoint", "condensation", "coresets", "evaluation", "judging", "maxmin"},
    {"runs"},
    {"analysis"},
    {"cli"},
]
LEAVES = {"checks", "files", "runtime"}  # they import only each other, so everything may import them


def imports(path, package):
    """The modules, with full names, that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            found |= {".".join([*module, alias.name]) for alias in node.names}
    return found


def used_rooms(path):
    """The names right below gmlib that a module imports."""
    package = ["gmlib", *path.relative_to(ROOT / "gmlib").parent.parts]
    used = {tuple(name.split(".")[1:]) for name in imports(path, package) if name.startswith("gmlib.")}
    leaf = ("analysis", "statistics")  # it needs nothing but the leaves: the interval of an Evaluation comes from it
    return {name[0] for name in used if name[:2] != leaf and name[0] != "__version__"}


MODULES = sorted(path for path in (ROOT / "gmlib").rglob("*.py") if path != ROOT / "gmlib" / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_only_from_rooms_to_its_left(path):
    name = path.relative_to(ROOT / "gmlib").parts[0].removesuffix(".py")
    used = used_rooms(path)
    if name in LEAVES or path.name == "statistics.py":
        assert used <= LEAVES
        return
    place = next(i for i, room in enumerate(ROOMS) if name in room)
    allowed = LEAVES.union(*ROOMS[: place + 1])
    assert used <= allowed, f"{name} imports {sorted(used - allowed)}"


def test_gmlib_does_not_know_the_report():
    for path in MODULES:
        assert not any(name.split(".")[0] == "gmreport" for name in imports(path, ["gmlib"])), path


def test_no_function_hides_its_module():
    modules = {path.stem for path in MODULES if path.parent == ROOT / "gmlib"} | {"speed", "runs", "analysis"}
    assert not modules & set(gmlib.__all__)
