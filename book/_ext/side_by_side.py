"""Run the pages' notebooks two at a time, before Sphinx reads the pages one by one.

What they show goes into Jupyter Book's cache, where each page finds it. A notebook that fails is left out: its page
runs it again and stops the build with the error. A page that measures times is left out too, and so runs alone.
"""

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import create_nb_reader
from sphinx.util import logging

AT_ONCE = 2  # a notebook takes up to 1 GB
MEASURING = {"notebooks/efficiency"}


def setup(app):
    app.connect("env-before-read-docs", fill_the_cache)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def run(notebook, path: Path, timeout: int):
    """The notebook with its outputs and its seconds, or None if a cell failed."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // AT_ONCE)))
    result = single_nb_execution(notebook, cwd=str(path.parent), timeout=timeout, allow_errors=False)
    return None if result.err else (result.nb, result.time)


def fill_the_cache(app, env, docnames):
    config = env.mystnb_config
    if config.execution_mode != "cache":
        return
    cache, missing = get_cache(config.execution_cache_path), {}
    for path in (Path(env.doc2path(name)) for name in sorted({*docnames} - MEASURING)):
        text = path.read_text(encoding="utf-8")
        if reader := create_nb_reader(str(path), env.myst_config, config, text):
            notebook = reader.read(text)
            try:
                cache.match_cache_notebook(notebook)
            except KeyError:
                missing[path] = notebook
    if len(missing) < 2:
        return
    logging.getLogger(__name__).info(f"running {len(missing)} notebooks, {AT_ONCE} at a time")
    with ProcessPoolExecutor(AT_ONCE, mp_context=get_context("spawn")) as pool:
        jobs = {
            pool.submit(run, notebook, path, config.execution_timeout): path for path, notebook in missing.items()
        }
        for job in as_completed(jobs):
            if done := job.result():
                notebook, seconds = done
                bundle = CacheBundleIn(notebook, str(jobs[job]), data={"execution_seconds": seconds})
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
