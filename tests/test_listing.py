"""The page "Algorithm 1, line by line" and the API reference."""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import gmlib as gm
from gmlib.algorithm import State, algorithm_1
from gmlib.recipe import Budget
from gmreport.listing import PRINT, Listing, cut, source_of

BOOK = Path(__file__).resolve().parents[1] / "book"
API = {page.stem: page.read_text("utf-8") for page in (BOOK / "api").glob("*.md")}
DOCUMENTED = {page: re.findall(r"automodule:: (\S+)", text) for page, text in API.items()}


@pytest.fixture(scope="module")
def extension():
    spec = importlib.util.spec_from_file_location("api_reference", BOOK / "_ext" / "api_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(name):
    """The object with this full name."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            found = getattr(found, part)
        return found


# ---- Algorithm 1, line by line


def test_the_page_shows_each_of_the_13_lines_once():
    page = Listing()._repr_html_()
    assert [int(n) for n in re.findall(r'id="line-(\d+)"', page)] == list(range(1, 14))
    assert all(line.text in page for line in PRINT.values())


def test_the_parts_together_are_the_source():
    source = source_of(algorithm_1)
    assert "\n".join(part.code for part in cut(source)) + "\n" == source
    assert '"""' not in source


@pytest.mark.parametrize("number", ["1", "5-6", "7", "10", "13"])
def test_a_missing_number_is_an_error(number):
    source = re.sub(rf"# {number}(?=:|$)", "#", source_of(algorithm_1), count=1, flags=re.MULTILINE)
    with pytest.raises(ValueError, match=number.split("-")[0]):
        cut(source)


def test_a_repeated_number_is_an_error():
    with pytest.raises(ValueError, match="once"):
        cut(source_of(algorithm_1).replace("# 9:", "# 8:"))


def test_a_part_starts_at_its_statement_and_the_heads_above_it():
    middle = "\n".join(f"        f({n})  # {n}: f" for n in range(4, 14))
    source = f"""def loop():
    first = f("# 1: no comment")  # 2 numbers
    a = f(
        1,
    )  # 1: a statement of three lines
    if first:  # no number
        # 2: a comment above its code
        b = f(2)
    for _ in range(3):
        c = f(3)  # 3
{middle}
"""
    parts = cut(source)
    assert [part.numbers for part in parts] == [[]] + [[n] for n in range(1, 14)]
    assert [part.code.split("\n")[0].strip() for part in parts[:4]] == [
        "def loop():",
        "a = f(",
        "if first:  # no number",
        "for _ in range(3):",
    ]


def test_links_lead_into_the_reference():
    links = set(re.findall(r'href="api/(\w+)\.html#([\w.]+)"', Listing()._repr_html_()))
    assert ("method", "gmlib.what.multi") in links
    for page, name in links:
        found = find(name)
        assert found.__doc__, name  # autodoc shows only what has a docstring
        assert found.__module__ in DOCUMENTED[page], name


def test_the_page_names_only_functions_that_a_run_calls():
    """The page stays true to the loop: a run of MDA with T > 1 calls all that it shows or links."""
    called = set()

    def note(frame, event, _):
        if event == "call":
            called.add(frame.f_code)

    data = gm.load_data("digits")
    recipe = gm.Recipe.for_method("MDA", "digits", 10, "smoke", outer_loops=1, inner_loops=2, zeta_theta=1, width=4)
    sys.setprofile(note)
    try:
        for _ in algorithm_1(data, recipe, State.initial(data, recipe)):
            pass
    finally:
        sys.setprofile(None)
    for function in {f for line in PRINT.values() for f in (*line.shown, *line.linked)}:
        methods = filter(inspect.isfunction, vars(function).values()) if inspect.isclass(function) else [function]
        assert called & {inspect.unwrap(method).__code__ for method in methods}, function


# ---- API reference


def test_every_module_is_in_the_reference_once():
    found = {module.name: module.ispkg for module in pkgutil.walk_packages(gm.__path__, "gmlib.")}
    documented = sorted(name for names in DOCUMENTED.values() for name in names if not found.get(name, False))
    assert documented == sorted(name for name, is_package in found.items() if not is_package)


def test_every_top_level_name_is_in_the_index():
    entries = dict(re.findall(r"`gm\.(\w+) <([\w.]+)>`", API["index"]))
    assert set(entries) == set(gm.__all__)
    for name, target in entries.items():
        assert find(target) is getattr(gm, name), name


def test_every_name_in_the_index_exists():
    for target in re.findall(r"<(gmlib\.[\w.]+)>`", API["index"]):
        assert find(target).__doc__ or isinstance(find(target), dict), target


@pytest.mark.parametrize("record", [gm.Recipe, gm.Protocol, Budget])
def test_every_field_is_explained_with_its_default(record, extension):
    lines = [line.removeprefix("    ") for line in record.__doc__.split("\n")]
    extension.annotate(None, "class", record.__name__, record, None, lines)
    shown = {name: line for line in lines if " : " in line for name in line.split(" : ")[0].split(", ")}
    for field in dataclasses.fields(record):
        assert ", default ``" in shown[field.name], field.name
    assert extension.drop_signature(None, "class", "", record, None, "(...)", None) == ("", None)


def test_types_of_the_library_become_links(extension):
    lines = [
        "Do.",
        "",
        "Parameters",
        "----------",
        "data : Data or None",
        "    A Data.",
        "",
        "Yields",
        "------",
        "Update",
    ]
    extension.annotate(None, "function", "", algorithm_1, None, lines)
    assert lines[4:6] == ["data : `Data` or None", "    A Data."]
    assert lines[-1] == "`Update`"
