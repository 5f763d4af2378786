"""Make the pages small and quick to show, and their code readable without scrolling.

- FontAwesome's script is 1.5 MB. The theme's style sheet draws the same icons with a font of 0.15 MB. So no page
  loads the script.
- Scripts in the head are deferred: a page is shown before they run. Only the search page loads the words of all
  pages.
- Screen readers get a name for each button of the theme, and no icons.
- A page without headings has no contents on its right, and more room for its text.
- A long line of code is an element of its own. It wraps below its own indentation, and its comment wraps below the
  beginning of the comment (page.css).
"""

import html
import re
from pathlib import Path

from docutils import nodes
from pygments.formatters import HtmlFormatter
from sphinx import addnodes
from sphinx.highlighting import PygmentsBridge

FONTAWESOME = re.compile(r"\s*<script[^>]*/fontawesome\.js[^>]*></script>")
SEARCH = re.compile(r"\s*<script[^>]*/?(?:searchtools|language_data|searchindex)\.js[^>]*></script>")
NOT_LOADED = ("scripts/fontawesome.js", "scripts/*.map", "styles/*.map")  # below _static
READ_AT_ONCE = "documentation_options.js"  # the theme's inline scripts need what it makes
UNFOLD = r'>\1\2 aria-label="Pages below: \1"'
FITS = 36  # letters of code that fit on a phone


# ---- scripts


def without_fontawesome(head: str) -> str:
    return FONTAWESOME.sub("", head)


def without_search(head: str) -> str:
    return SEARCH.sub("", head)


def named(body: str) -> str:
    """Name buttons and folded parts by what is written on them, and hide the theme's icons from screen readers."""
    body = re.sub(r'<(i|span) class="((?:[\w-]+ )*fa-[^"]*)"', r'<\1 aria-hidden="true" class="\2"', body)
    body = re.sub(r'<span class="search-button__kbd-shortcut"', r'\g<0> aria-hidden="true"', body)
    body = re.sub(r'(<button class="btn search-button-field[^>]*?) aria-label="[^"]*"', r"\1", body)
    body = re.sub(r'>([^<>]+)(</a><details[^>]*><summary)(?=><span class="toctree-toggle")', UNFOLD, body)
    body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    return body.replace(
        '<div role="list" class="citation-list">', '<div class="citation-list">'
    )  # its children have other roles


def add_filters(app):
    """Give the filters to layout.html. They change what the theme's templates write."""
    if app.builder.format == "html":
        for function in (without_fontawesome, without_search, named):
            app.builder.templates.environment.filters[function.__name__] = function


def deferred(script):
    """A script of a page's head that waits until the page is read."""
    name = getattr(script, "filename", None)
    if not name or str(name).endswith(READ_AT_ONCE):
        return script
    return type(script)(name, priority=script.priority, **{"defer": "defer", **script.attributes})


def defer_scripts(app, pagename, templatename, context, doctree):
    if pagename != "search":  # its template adds scripts that do not wait, and need the others
        context["script_files"] = [deferred(script) for script in context.get("script_files", [])]


def delete_what_no_page_loads(app, exception):
    if app.builder.format == "html" and exception is None:
        for pattern in NOT_LOADED:
            for file in Path(app.outdir, "_static").glob(pattern):
                file.unlink()


# ---- the column on the right


def drop_empty_contents(app, pagename, templatename, context, doctree):
    if (
        doctree is not None
        and len(list(doctree.findall(nodes.section))) < 2
        and not any(doctree.findall(addnodes.desc))
    ):
        context["secondary_sidebar_items"] = []


# ---- code


def plain(code: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", code))


def hanging(line: str) -> int:
    """How far the second row of a long line of code is indented, in letters."""
    text = plain(line)
    indentation = len(text) - len(text.lstrip())
    comment = re.search(r'<span class="c1?">', line)
    if comment:
        return max(indentation, len(plain(line[: comment.start()]))) + 2
    return indentation + 4


class LineFormatter(HtmlFormatter):
    """Puts each long line into an element that carries its indentation."""

    def wrap(self, source):
        return super().wrap(self.as_elements(source))

    def as_elements(self, source):
        for is_code, line in source:
            if is_code and len(plain(line).rstrip()) > FITS:
                line = f'<span class="gm-line" style="--hanging: {hanging(line)}ch">{line}</span>'
            yield is_code, line


def setup(app):
    PygmentsBridge.html_formatter = LineFormatter
    app.connect("builder-inited", add_filters, priority=900)  # after the theme's templates are there
    app.connect("html-page-context", defer_scripts, priority=900)  # after the theme has added its own
    app.connect("html-page-context", drop_empty_contents, priority=900)
    app.connect("build-finished", delete_what_no_page_loads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
