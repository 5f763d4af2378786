"""What the extensions of the book in book/_ext do to code, buttons, scripts, descriptions and the footer."""

import importlib
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
from jupyter_cache import get_cache
from myst_nb.core.config import NbParserConfig
from myst_parser.config.main import MdParserConfig
from pygments import highlight
from pygments.lexers import PythonLexer

EXTENSIONS = Path(__file__).parent.parent / "book" / "_ext"


def extension(name):
    return SimpleNamespace(**runpy.run_path(str(EXTENSIONS / f"{name}.py")))


lean, facts = extension("lean_pages"), extension("page_facts")


def paragraph(*children):
    return nodes.paragraph("", "", *children)


@pytest.mark.parametrize(
    ("line", "hanging"),
    [
        ("x = call(first_argument, second_argument, third)", 4),
        ("        x = call(first_argument, second_argument)", 12),
        ("ipc = 10          # images per class in S, any number", 20),
        ("    # a comment that has a line of its own in the code", 6),
    ],
)
def test_a_long_line_wraps_below_its_indentation_or_its_comment(line, hanging):
    html = highlight(line, PythonLexer(stripnl=False), lean.LineFormatter())
    assert f'class="gm-line" style="--hanging: {hanging}ch"' in html
    assert lean.plain(html).strip() == line.strip()


def test_a_short_line_stays_as_it_is():
    assert "gm-line" not in highlight("x = 1  # short", PythonLexer(), lean.LineFormatter())


def test_the_theme_keeps_its_other_scripts():
    kept = '<script defer src="_static/scripts/bootstrap.js?digest=1"></script>'
    icons = '<script defer src="../_static/scripts/fontawesome.js?digest=1"></script>'
    words = '<script src="searchindex.js"></script>'
    assert lean.without_search(lean.without_fontawesome(kept + icons + words)) == kept


def test_buttons_are_named_by_what_is_written_on_them():
    unfold = (
        '<a href="x.html">API</a><details><summary><span class="toctree-toggle"><i class="fa-solid fa-chevron-down">'
    )
    named = lean.named(unfold)
    assert '<summary aria-label="Pages below: API">' in named
    assert '<i aria-hidden="true" class="fa-solid fa-chevron-down">' in named
    search = '<button class="btn search-button-field pst-js-only" title="Search" aria-label="Search">'
    assert lean.named(search) == search.replace(' aria-label="Search"', "")


def test_a_description_skips_a_heading_in_bold_sentences_with_maths_and_citations():
    text = paragraph(
        nodes.strong("", "Section 3.3, Eq. 10 to 12."),
        nodes.Text(" Gradients are matched [1, 2] along a path, as in Eq. 10. Here "),
        nodes.math("", "theta"),
        nodes.Text(" moves. How many steps does it take? It ends without a full stop"),
    )
    expected = ["Gradients are matched along a path, as in Eq. 10.", "How many steps does it take?"]
    assert facts.sentences(text) == expected


def test_a_folder_without_git_has_no_commit(tmp_path):
    assert facts.commit(tmp_path) is None


def test_the_entries_to_cite_name_the_paper_the_version_and_the_commit():
    root = EXTENSIONS.parent.parent
    entries = facts.bibtex(root, ("0123456789ab", "2026-01-02"))
    assert "2208.00311" in entries and "@software{gmlib," in entries
    assert "{commit 0123456789ab}" in entries and "{2026}" in entries
    assert "commit" not in facts.bibtex(root, None)


def test_notebooks_run_side_by_side_and_the_pages_find_them(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXTENSIONS)  # the processes import it too
    side = importlib.import_module("side_by_side")
    config = NbParserConfig(
        execution_mode="cache", execution_cache_path=str(tmp_path / "cache"), execution_timeout=60
    )
    env = SimpleNamespace(mystnb_config=config, myst_config=MdParserConfig(), doc2path=lambda name: tmp_path / name)
    cells = {"a.md": "6 * 7", "b.md": "6 * 8", "fails.md": "1 / 0", "measures.md": "6 * 9"}
    for name, cell in cells.items():
        (tmp_path / name).write_text(f"---\nfile_format: mystnb\n---\n# {name}\n```{{code-cell}}\n{cell}\n```\n")
    (tmp_path / "prose.md").write_text("# No cells\n")
    monkeypatch.setattr(side, "MEASURING", {"measures.md"})
    side.fill_the_cache(None, env, [*cells, "prose.md"])
    found = get_cache(config.execution_cache_path)
    outputs = {Path(record.uri).name: found.get_cache_bundle(record.pk).nb for record in found.list_cache_records()}
    shown = {name: notebook.cells[-1].outputs[0].data["text/plain"] for name, notebook in outputs.items()}
    assert shown == {"a.md": "42", "b.md": "48"}, "not the one that fails, nor the one that measures"
