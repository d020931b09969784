# `make demo` and `make test` do all set-up on a fresh machine; nothing else is needed but Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
ROOMS = checkpoint documents index metrics parity training wiki_dpr

CONFORMANCE = build/conformance

.PHONY: demo test check conformance docs demo-model clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,tf,t5,dev]'
	@touch $@

demo: $(INSTALLED)  ## build the demo knowledge base and answer a few questions; BACKEND=tf for TensorFlow
	@$(BIN)/dualrag demo $(if $(BACKEND),--backend $(BACKEND))

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest

check: $(INSTALLED)  ## linters, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

conformance: $(INSTALLED)  ## every case on both backends, compared in float64 and float32; docs/conformance.md
	mkdir -p $(CONFORMANCE)
	for dtype in float64 float32; do for backend in torch tf; do \
		$(BIN)/python -m conformance run --backend $$backend --dtype $$dtype --cases all \
			--out $(CONFORMANCE)/$$backend-$$dtype.npz || exit; done; \
		$(BIN)/python -m conformance compare $(CONFORMANCE)/torch-$$dtype.npz $(CONFORMANCE)/tf-$$dtype.npz \
			--report $(CONFORMANCE)/report-$$dtype || exit; done

docs: $(INSTALLED)  ## API reference, as HTML, from the docstrings
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/pdoc --docformat google --output-directory site rag_core $(ROOMS:%=rag_core.%) rag_torch \
		rag_torch.answers rag_torch.decoding rag_torch.foreign rag_torch.marginalize

demo-model: $(INSTALLED)  ## retrain the shipped demo model from scratch and measure it
	$(BIN)/python -m rag_torch.demo_training

clean:
	rm -rf $(VENV) site build dist *.egg-info
