"""Serve MathJax from the report itself, so that a page needs no other host to show its equations.

The package sphinx-mathjax-offline carries all of MathJax 3 (23 MB), and as an extension it would copy all of
it. Here only what a page can ask for is copied: the TeX-to-HTML bundle, the TeX extensions that it loads on
demand, and the fonts.
"""

import shutil
from importlib.metadata import distribution
from pathlib import Path

NEEDED = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts/woff-v2")


def use_local_mathjax(app, config):
    config.mathjax_path = "mathjax/tex-chtml.js"  # relative to _static


def copy_mathjax(app):
    if app.builder.format != "html":
        return
    source = Path(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax"))
    target = Path(app.outdir, "_static", "mathjax")
    for name in NEEDED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def setup(app):
    app.connect("config-inited", use_local_mathjax)
    app.connect("builder-inited", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
