# Every verb does its own set-up: `make demo` and `make test` run from a bare Python 3.11.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint type bench train-tiny clean

PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv and install the package with its development tools

$(STAMP): pyproject.toml
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "miga-bench needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PY=python3.11" >&2; exit 1; }
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)  ## Four methods, same prompts and seeds: video, contact sheet and table in demo/
	$(BIN)/miga-bench demo --force

test: lint type  ## Lint, type check and every test that needs neither GPU nor minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not gpu and not slow"

lint: $(STAMP)  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)  ## Check types
	$(BIN)/mypy

bench: $(STAMP)  ## Measure overhead, speed against a plain loop, memory and start-up; JSON last
	$(BIN)/miga-bench bench

train-tiny: $(STAMP)  ## Train the embedded model from scratch on this machine
	$(BIN)/python -m miga_bench.backbones.tiny.train

clean:  ## Remove caches, build leftovers and demo output (not .venv, not runs)
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find miga_bench tests -name __pycache__ -type d -prune -exec rm -rf {} +
