"""What a page says about itself: to search engines, to those who link to it, and in its footer.

A page's description is the `description` of its front matter (`myst: html_meta:`), or its first sentences. The footer
names the commit that the report was built from, with its date, and holds the BibTeX entries of the paper and of the
report.
"""

import html
import os
import re
import subprocess
from pathlib import Path

import yaml
from docutils import nodes

PICTURE = "_static/hero.png"
PAPER = "jiang2022delving"  # its entry in references.bib
LENGTH = 200  # letters of a description: search engines show no more
END_OF_SENTENCE = re.compile(r"(?<=[.!?])(?<!Eq\.)(?<!Fig\.)(?<!vs\.)\s+(?=[A-Z0-9*])")
MATHS = "\0"
CITED = re.compile(r"\s*\[\d+(?:, ?\d+)*\]")
WITHOUT_TITLE = {"genindex": "Index", "py-modindex": "Modules", "search": "Search"}


# ---- description


def sentences(paragraph: nodes.paragraph) -> list[str]:
    """The sentences of a paragraph without maths. Words in bold at its beginning are a heading."""
    parts = []
    for child in paragraph.children:
        if any(isinstance(node, nodes.math) for node in child.findall()):
            parts.append(MATHS)
        elif not (isinstance(child, nodes.strong) and not "".join(parts).strip()):
            parts.append(child.astext())
    text = re.sub(r"\s+", " ", CITED.sub("", "".join(parts))).replace("al..", "al.").strip()
    return [
        sentence
        for sentence in END_OF_SENTENCE.split(text)
        if MATHS not in sentence and sentence.endswith((".", "?", "!"))
    ]


def first_sentences(doctree: nodes.document) -> str:
    """As many of the first sentences of a page as a search engine shows, and one at least."""
    found = ""
    for paragraph in doctree.findall(nodes.paragraph):
        if not isinstance(paragraph.parent, nodes.section):
            continue  # in a list, a table or the output of a cell
        for sentence in sentences(paragraph):
            if found and len(found) + len(sentence) >= LENGTH:
                return found
            found = f"{found} {sentence}".strip()
        if len(found) > LENGTH / 2:
            return found
    return found


def describe(app, pagename, templatename, context, doctree):
    """Add the description and what a link to the page shows elsewhere (Open Graph)."""
    report = app.config.html_title
    title = html.unescape(re.sub("<[^>]*>", "", context.get("title") or "")) or WITHOUT_TITLE.get(pagename, pagename)
    given = re.search(
        r'content="([^"]*)" name="description"|name="description" content="([^"]*)"', context.get("metatags") or ""
    )
    if given:
        text = html.unescape(given[1] or given[2])
    else:
        text = (first_sentences(doctree) if doctree is not None else "") or f"{title} of the report: {report}."
    facts = {"og:title": title, "og:description": text, "og:type": "article", "og:site_name": report}
    if Path(app.srcdir, PICTURE).is_file():
        facts["og:image"] = context["pathto"](PICTURE, True)
        facts["og:image:alt"] = "Ten images that learn to stand for a data set: noise at first, digits at the end."
    tags = [f'<meta property="{name}" content="{html.escape(value)}" />' for name, value in facts.items()]
    if not given:
        tags.insert(0, f'<meta name="description" content="{html.escape(text)}" />')
    context["metatags"] = "\n    ".join([context.get("metatags") or "", *tags])


# ---- footer


def git(folder: Path, *command: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # reads only
    run = ["git", "-C", str(folder), *command]
    return subprocess.run(run, capture_output=True, text=True, check=True, timeout=20, env=environment).stdout.strip()


def commit(root: Path) -> tuple[str, str] | None:
    """The commit of a checkout, and its day. "+" follows if tracked files were changed. None outside a checkout."""
    if not (root / ".git").exists():
        return None
    try:
        name, day = git(root, "show", "--no-patch", "--format=%H %cs", "HEAD").split()
        changed = git(root, "diff", "--name-only", "HEAD")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return name[:12] + ("+" if changed else ""), day


def bibtex(root: Path, built_from: tuple[str, str] | None) -> str:
    """The entries of the paper, from references.bib, and of the report, from CITATION.cff."""
    entries = re.split(r"\n(?=@)", (root / "book" / "references.bib").read_text("utf-8"))
    paper = next(entry.strip() for entry in entries if entry.startswith(f"@misc{{{PAPER},"))
    cited = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    fields = {
        "title": "{" + cited["title"] + "}",
        "author": "{" + " and ".join("{" + author["name"] + "}" for author in cited["authors"]) + "}",
        "version": "{" + str(cited["version"]) + "}",
        "year": "{" + built_from[1][:4] + "}" if built_from else None,
        "note": "{commit " + built_from[0] + "}" if built_from else None,
    }
    lines = [f"  {name:<7} = {value}" for name, value in fields.items() if value]
    return paper + "\n\n@software{gmlib,\n" + ",\n".join(lines) + "\n}"


def write_footer(app, config):
    root = Path(app.srcdir, "_config.yml").resolve().parent
    found = commit(root)
    built = ""
    if found:
        changed = ", with changes that are not committed" if found[0].endswith("+") else ""
        built = (
            f'<p class="gm-built">Built from commit <code>{found[0].rstrip("+")}</code> of {found[1]}{changed}.</p>'
        )
    entries = f'<pre tabindex="0">{html.escape(bibtex(root, found))}</pre>'
    cite = f'<details class="gm-cite"><summary>Cite the paper and this report</summary>{entries}</details>'
    config.html_theme_options["extra_footer"] = built + cite


def setup(app):
    app.connect("config-inited", write_footer)
    app.connect("html-page-context", describe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
