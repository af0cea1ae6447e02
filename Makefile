# `make demo` trains a model; `make test` runs the fast suite. Each target installs its dependencies in .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
SITE := $(VENV)/.site
GGUF := $(VENV)/.gguf
SMOLLM2 := models/smollm2-135m

.PHONY: help setup demo demo-rloo demo-smollm2 test test-slow check prose format docs docs-site bench bench-update bench-sampling bench-step bench-curves bench-gpu wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

setup: $(READY)  ## create .venv and install gvpo with its test dependencies

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gvpo needs Python 3.11 or newer: make PYTHON=python3.12 setup"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## train a small model with GVPO on column addition, in runs/demo (or the next free number)
	$(BIN)/gvpo train demo

demo-rloo: $(READY)  ## train the demo with RLOO instead
	$(BIN)/gvpo train demo/rloo

demo-smollm2: $(SMOLLM2)/source.json  ## train a pretrained model, SmolLM2-135M, to write short sentences
	$(BIN)/gvpo train smollm2

$(SMOLLM2)/source.json: | $(GGUF)
	$(BIN)/python recipes/smollm2/weights.py $(SMOLLM2)

$(GGUF): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gguf]'
	@touch $@

test: $(READY)  ## run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(READY)  ## run the slow tests: three seeds of the demo, the wheel in an empty environment
	$(BIN)/python -m pytest -m slow

check: $(READY)  ## format, lint, types and English
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m tools.prose

prose: $(READY)  ## find English that CONTRIBUTING.md asks us not to write
	$(BIN)/python -m tools.prose

format: $(READY)  ## rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## rewrite generated pages and tables from the code
	$(BIN)/python tools/configuration_page.py
	$(BIN)/python tools/trl_options_page.py
	$(BIN)/python tools/objectives_table.py

docs-site: $(SITE)  ## build the documentation site in build/site/html; a broken link is an error
	$(BIN)/python tools/docs_site.py

$(SITE): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

bench: bench-update bench-curves bench-sampling bench-step  ## compare with TRL and transformers; write tables into docs/internals/benchmarks.md and JSON into runs/bench

bench-update: $(PEERS)
	$(BIN)/python benchmarks/update_vs_trl.py --page docs/internals/benchmarks.md --json runs/bench/update.json

bench-sampling: $(PEERS)
	$(BIN)/python benchmarks/sampling_vs_generate.py --page docs/internals/benchmarks.md --json runs/bench/sampling.json

bench-step: $(PEERS)
	$(BIN)/python benchmarks/step_vs_trl.py --page docs/internals/benchmarks.md --json runs/bench/step.json --svg docs/figures/step.svg

bench-curves: $(READY)
	$(BIN)/python benchmarks/update_curves.py --page docs/internals/benchmarks.md --json runs/bench/curves.json

bench-gpu: $(READY)  ## check the update on a GPU, in at most 8 minutes: exactness, then speed
	$(BIN)/python benchmarks/gpu.py --page docs/internals/benchmarks.md --json runs/bench/gpu.json

$(PEERS): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,trl]'
	@touch $@

wheel: $(READY)  ## build dist/*.whl
	$(BIN)/python -m build --wheel

clean:  ## remove build files; keep .venv and runs/
	rm -rf dist build .mypy_cache .pytest_cache .ruff_cache
