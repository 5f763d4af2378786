"""Serve MathJax from the report itself, so that a page needs no other host to show its equations.

The package sphinx-mathjax-offline carries all of MathJax 3 (23 MB), and as an extension it would copy all of it. Here
only what a page can ask for is copied: the parts below, the TeX extensions that they load on demand, and the fonts.
MathJax's usual bundle is half as large again, for a menu and a speech engine that no page uses. Screen readers get
equations as MathML (assistive-mml).
"""

import shutil
from importlib.metadata import distribution
from pathlib import Path

PARTS = ["core", "input/tex", "output/chtml", "a11y/assistive-mml"]
COPIED = ["startup.js", *(f"{part}.js" for part in PARTS), "input/tex/extensions", "output/chtml/fonts"]


def use_local_mathjax(app, config):
    config.mathjax_path = "mathjax/startup.js"  # relative to _static
    config.mathjax3_config = {**(config.mathjax3_config or {}), "loader": {"load": PARTS}}


def copy_mathjax(app):
    if app.builder.format != "html":
        return
    source = Path(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax"))
    target = Path(app.outdir, "_static", "mathjax")
    shutil.rmtree(target, ignore_errors=True)  # another version may have left other parts there
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def setup(app):
    app.connect("config-inited", use_local_mathjax)
    app.connect("builder-inited", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
