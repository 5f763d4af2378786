"""Write the files that the cards of the condensed sets link to, into the built report."""

from pathlib import Path

from gmreport.cards import DOWNLOADS, write_downloads


def write(app, exception):
    if exception is None and app.builder.format == "html":
        write_downloads(Path(app.outdir, DOWNLOADS))


def setup(app):
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
