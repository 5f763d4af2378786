"""What the extensions of the book in book/_ext do to code, buttons, scripts, descriptions and the footer."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
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
