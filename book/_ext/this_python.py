"""Run the pages with the Python that builds the book, even if another kernel "python3" is installed."""

from gmreport.batch import use_this_python


def setup(app):
    use_this_python()
    return {"parallel_read_safe": True, "parallel_write_safe": True}
