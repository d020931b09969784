# `make demo` and `make test` do all set-up on a fresh machine; nothing else is needed but Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
CONFORMANCE = build/conformance

.DEFAULT_GOAL := help
.PHONY: help install demo test beyond check conformance bench bench-quick results docs demo-model dist compat clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'
	@echo
	@echo "Each installs what it needs into $(VENV) first; 'source $(BIN)/activate' puts dualrag and python on the path."

# --no-compile: of TensorFlow's thousands of modules only those that are used get compiled, at their first use.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --use-pep517 -c constraints.txt

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing PyTorch (its CPU build), TensorFlow and the tools of the tests into $(VENV): 3.3 GB, some minutes."
	@$(PIP) -e '.[torch,tf,tf-text,t5,dev]'
	@touch $@

install: $(INSTALLED)  ## both frameworks and the tools of the tests, into .venv

# one framework is enough to see the demo
SIZE_torch = PyTorch (its CPU build) and what dualrag needs, 1.2 GB; a minute or two
SIZE_tf = TensorFlow and what dualrag needs, 2.4 GB; some minutes
SIZE_bench = matplotlib, for the charts, 40 MB; seconds
SIZE_beyond = Ray and what else tests that run apart need, 0.46 GB; a minute
SIZE_docs = Zensical, mkdocstrings and what dualrag needs without a framework, 0.5 GB; a minute
SIZE_results = bm25s, matplotlib and the libraries of ROUGE-L and BLEU, 60 MB; seconds

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): $(SIZE_$*)."
	@$(PIP) -e '.[$*]'
	@touch $@

BACKEND ?= torch

demo: $(VENV)/.installed-$(BACKEND)  ## build the demo knowledge base, answer a few questions; BACKEND=tf for TensorFlow
	@$(BIN)/dualrag demo --backend $(BACKEND)

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest

beyond: $(INSTALLED) $(VENV)/.installed-beyond  ## run the tests that `make test` leaves out: clusters, stores, other libraries
	$(BIN)/python -m pytest -m beyond

check: $(INSTALLED)  ## linters, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

conformance: $(INSTALLED)  ## every case on both backends, compared in float64 and float32; docs/conformance.md
	mkdir -p $(CONFORMANCE)
	for dtype in float64 float32; do for backend in torch tf; do \
		$(BIN)/python -m conformance run --backend $$backend --dtype $$dtype --cases all \
			--out $(CONFORMANCE)/$$backend-$$dtype.npz || exit; done; \
		$(BIN)/python -m conformance compare $(CONFORMANCE)/torch-$$dtype.npz $(CONFORMANCE)/tf-$$dtype.npz \
			--report $(CONFORMANCE)/report-$$dtype || exit; done

# e.g.  make bench BENCH='--jobs token_beam4 --peer transformers4=FOLDER'
BENCH ?=

bench: $(INSTALLED) $(VENV)/.installed-bench  ## dualrag against its peers, in environments of their own; docs/performance.md
	$(BIN)/python -m benchmarks $(BENCH)

bench-quick: $(INSTALLED) $(VENV)/.installed-bench  ## the same at tiny sizes: do all of them run and agree?
	$(BIN)/python -m benchmarks --quick $(BENCH)

# e.g.  make results BACKEND=tf QUICK=1 RESULTS='--wheel pyserini-0.17.0-py3-none-any.whl'
QUICK ?=
RESULTS ?=

results: $(INSTALLED) $(VENV)/.installed-results  ## the paper in miniature; docs/results.md. BACKEND=tf, QUICK=1
	$(BIN)/python -m experiments.results --backend $(BACKEND) $(if $(QUICK),--quick) $(RESULTS)

docs: $(VENV)/.installed-docs  ## the documentation as a site, in site/: needs Python 3.11, and no network once that is installed
	@$(BIN)/python -m website

demo-model: $(VENV)/.installed-torch  ## retrain the shipped demo model from scratch and measure it
	$(BIN)/python -m experiments.demo_training

# hatchling writes its own version into the wheel, and the time of the commit into both archives
dist: | $(BIN)/python  ## wheel and sdist, in dist/: built twice to the same bytes, and checked
	@$(PIP) build twine
	rm -rf dist build/dist
	export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) PIP_CONSTRAINT=$(CURDIR)/constraints.txt; \
		for folder in dist build/dist; do $(BIN)/python -m build --outdir $$folder . || exit; done
	diff -r dist build/dist
	$(BIN)/twine check --strict dist/*

# e.g.  make compat COMPAT='3.13 torch'
COMPAT ?=

compat:  ## both ends of the supported versions, as far as they can be had here: gigabytes, and an hour
	$(PYTHON) .ci/compat.py $(if $(COMPAT),--only '$(COMPAT)')

clean:  ## remove the environment and what was built; the demo's cache (~/.cache/dualrag) stays
	rm -rf $(VENV) site build dist *.egg-info
