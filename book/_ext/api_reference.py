"""What the API reference adds to autodoc and napoleon.

A class of gmlib that a docstring names as a type becomes a link. A field of a dataclass gets its default. A name in
single backticks becomes a link if exactly one object of gmlib has it. Dataclasses and NamedTuples show their fields
once, as their docstrings explain them.
"""

import dataclasses
import inspect
import re
import sys

from docutils import nodes
from sphinx.util.nodes import make_refnode

SECTIONS = ("Attributes", "Parameters", "Raises", "Returns", "Yields")
CLASS = re.compile(r"(?<![\w.`])[A-Z]\w+(?![\w.`])")


def annotate(app, what, name, obj, options, lines):
    """Rewrite the lines "name : type" of a numpydoc docstring. Napoleon reads them afterwards."""
    namespace = vars(sys.modules.get(getattr(obj, "__module__", None), object))

    def as_link(word):
        found = namespace.get(word[0])
        return f"`{word[0]}`" if inspect.isclass(found) and found.__module__.startswith("gmlib") else word[0]

    if what in ("attribute", "data", "property"):
        lines[:0] = [
            "..",
            "",
        ]  # an empty comment: napoleon would read a first line "a: b" as a type and its explanation
    section = ""
    for i, line in enumerate(lines):
        if i + 1 < len(lines) and re.fullmatch("-{3,}", lines[i + 1]):
            section = line
        elif section in SECTIONS and line and line[0] not in " -":
            field, colon, types = line.partition(" : ")
            if not colon and section in ("Raises", "Returns", "Yields"):
                field, types = "", line
            default = default_of(obj, field) if section == "Attributes" and "default" not in types else ""
            lines[i] = field + colon + CLASS.sub(as_link, types) + default


def source_as_field(app, what, name, obj, options, lines):
    """Show the section Source in the list of Parameters and Returns. Napoleon has made a heading of it."""
    if ".. rubric:: Source" in lines:
        i = lines.index(".. rubric:: Source")
        lines[i:] = [":Source:", *(f"   {line}" for line in lines[i + 1 :])]


def default_of(obj, names):
    """``, default 1`` for a field of a dataclass, or ``, default 128 and 3`` for two."""
    if not (dataclasses.is_dataclass(obj) and inspect.isclass(obj)):
        return ""
    fields = {field.name: field for field in dataclasses.fields(obj)}
    defaults = []
    for name in names.split(", "):
        field = fields.get(name)
        if field is None or (field.default, field.default_factory) == (dataclasses.MISSING, dataclasses.MISSING):
            return ""
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        defaults.append(f'``"{value}"``' if isinstance(value, str) else f"``{value!r}``")
    return ", default " + " and ".join(dict.fromkeys(defaults))


def is_record(obj):
    return inspect.isclass(obj) and (dataclasses.is_dataclass(obj) or hasattr(obj, "_fields"))


def drop_signature(app, what, name, obj, options, signature, return_annotation):
    return ("", None) if is_record(obj) else None


def skip_member(app, what, name, obj, skip, options):
    """The fields of a NamedTuple, which its docstring explains already."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def resolve(app, env, node, contnode):
    """Link a name in backticks to the only object whose full name ends with it. Any other name stays code."""
    if (node.get("refdomain"), node.get("reftype")) != ("py", "obj"):
        return None
    objects = env.get_domain("py").objects
    found = [full for full in objects if full.endswith("." + node["reftarget"].removeprefix("gmlib."))]
    if len(found) != 1:
        return contnode
    entry = objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found[0])


def straight_quotes(app, doctree):
    """Undo curly quotes, which cannot be copied into code."""
    if app.env.docname.startswith("api/"):
        for text in list(doctree.findall(nodes.Text)):
            straight = text.translate(str.maketrans("“”‘’", "\"\"''"))
            if straight != text:
                text.parent.replace(text, nodes.Text(straight))


def setup(app):
    app.connect("autodoc-process-docstring", annotate, priority=400)  # before napoleon, which has 500
    app.connect("autodoc-process-docstring", source_as_field, priority=600)
    app.connect("autodoc-process-signature", drop_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-read", straight_quotes)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
