# make book    set up, run the chapters' experiments on digits, build the report
# make test    set up, lint, run every test and every notebook, build the book with warnings as errors
# make results BUDGET=lite DATASETS="MNIST FashionMNIST" IPC="1 10"    fill the paper's tables (DRY_RUN=1: only say what is left, and how long it takes): workflow/README.md

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(wildcard gmlib/*.py gmlib/*/*.py book/gmreport/*.py book/gmreport/*.csv) requirements.lock
REPORT := book/_build/html/index.html

.PHONY: help setup ready links book test lint unit workflow wheel notebooks again strict browser bench faults results clean

help:
	@grep -E '^# make' Makefile | cut -c3-
	@echo "make setup   only create .venv and install gmlib, its extras and the report"
	@echo "make links   make the links in book/ again, for a copy of the repository that came without them"
	@echo "make lint, unit, wheel, notebooks, again, strict, workflow, browser   the parts of make test"
	@echo "make bench   compare gmlib with plain loops, into runs/benchmarks.json (BENCH=--quick: in a minute)"
	@echo "make faults  kill runs, damage files and give bad inputs, into results/faults.json (the page What it survives)"
	@echo "make clean   remove what was built and the smoke runs on digits"

# ---- set-up: once, and again only if a list of dependencies changed

setup: .venv/.installed

# uv takes a third of pip's time. pip does it where its settings name another index, which uv would not see, and where uv fails.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint requirements.lock
UV := $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --quiet --constraint requirements.lock
PACKAGES := --editable '.[data,analysis,workflow,dev]' --editable ./book

.venv/.installed: pyproject.toml book/pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "gmlib needs Python 3.11 to 3.13, but $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=python3.12 ..."; exit 1; }
	@echo "installing into .venv: some minutes, several GB the first time"
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	trap 'exit 130' INT; ! $(BIN)/pip config list | grep -q 'index-url.*http' && $(PIP) uv && $(UV) $(PACKAGES) || \
	  $(PIP) $(PACKAGES)
	@touch $@

# ---- the report

book: setup ready runs/.made-by runs/.read
	$(BIN)/jupyter-book build book
	@echo "The report is at $(CURDIR)/$(REPORT)"

# One sentence for a copy without links, or for Jupyter Book 2, which ends with status 0 and builds nothing.
ready: setup
	@$(BIN)/python -m gmreport.ready book

links:
	for name in _config.yml _toc.yml notebooks; do rm -f book/$$name && ln -s ../$$name book/$$name || exit 1; done

# jupyter-cache sees only the text of a notebook's cells: after a change in gmlib the cached pages and the smoke runs on digits
# are out of date. Runs on other data are left alone.
runs/.made-by: $(SOURCES)
	rm -rf runs/smoke/digits runs/smoke/*/digits book/_build
	@mkdir -p runs && touch $@

# The pages read the committed results too.
runs/.read: $(shell find results -type f) runs/.made-by
	rm -rf book/_build
	@touch $@

# ---- tests

# What waits much, or uses one core, runs beside something else.
PAIR := $(MAKE) --no-print-directory -j2
test: setup
	$(PAIR) unit lint wheel
	$(MAKE) --no-print-directory notebooks
	$(PAIR) browser workflow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --ignore-glob='tests/test_browser_*.py' \
	  --ignore=tests/test_workflow.py

# workflow/: the engine as processes, and on a SLURM cluster of one node. Most of the time it waits.
workflow: setup
	$(BIN)/python -m pytest -rs tests/test_workflow.py

# The wheel, installed outside the checkout with its own dependencies and no others, condenses and loads sets.
wheel: setup
	$(BIN)/python tests/check_wheel.py build/wheel

# Every notebook as a batch job. A failing cell is an error.
notebooks: setup runs/.made-by
	$(BIN)/python tests/check_notebooks.py build/papermill run

# The pages run every notebook once more. Work that is done again is an error.
again: strict
	$(BIN)/python tests/check_notebooks.py build/papermill compare

strict: setup ready runs/.made-by runs/.read
	$(BIN)/jupyter-book build -W -n --keep-going book
	$(BIN)/python tests/check_book.py book/_build/html

# Every page of the built report in headless Chromium. Without Chromium, its driver or npm one line says what is skipped.
browser: again tests/node_modules
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/test_browser_*.py

# axe-core, the rules of accessibility: the version and the digest are in tests/package-lock.json.
tests/node_modules: tests/package.json tests/package-lock.json
	@npm ci --prefix tests --ignore-scripts --no-audit --no-fund && touch $@ || \
	  echo "axe-core was not installed: the tests of accessibility are skipped"

# ---- the paper's tables, under results/: see workflow/README.md

BUDGET ?= paper
DATASETS ?= MNIST
IPC ?= 1 10 50
PROFILE ?= local
CORES ?= all
ENGINE = --snakefile workflow/Snakefile --profile workflow/profiles/$(PROFILE) --cores $(CORES) $(MEMORY)
# Not more jobs at once than fit into the memory.
MEMORY = $(if $(wildcard /proc/meminfo),--resources mem_mb=$(shell awk '/MemTotal/ {print int($$2 / 1024)}' /proc/meminfo))
CONFIG = budget=$(BUDGET) datasets="$(DATASETS)" ipc="$(IPC)" $(if $(CELLS),cells="$(CELLS)") $(MORE)

results: setup
	$(BIN)/snakemake times $(ENGINE) --quiet rules progress host --config $(CONFIG)
	$(BIN)/snakemake $(ENGINE) $(if $(DRY_RUN),--dry-run) --quiet rules host --config $(CONFIG)

# ---- benchmarks: gmlib against plain loops and the machine's ceiling, see benchmarks/README.md

bench: setup
	$(BIN)/python benchmarks/bench.py $(BENCH)

# ---- kills, damaged files, full disks and bad inputs, for the page "What it survives"

faults: setup
	$(BIN)/python tests/faults.py --out results/faults.json

clean:
	rm -rf book/_build build runs/smoke/digits runs/smoke/*/digits runs/.made-by
