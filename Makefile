# Every verb does its own set-up: `make demo` and `make test` run from a bare Python 3.11 to 3.14.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-mlflow-postgres test-vbench lint type bench bench-export bench-gpu bench-scores \
  endurance endurance-hour train-tiny clean

PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
VBENCH := .venv-vbench
PROCESSES ?= 2

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv and install the package with its development tools

$(STAMP): pyproject.toml
	@$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	  || { echo "miga-bench needs Python 3.11 to 3.14; try: make $(MAKECMDGOALS) PY=python3.11" >&2; exit 1; }
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)  ## All methods, same prompts and seeds: video, contact sheet and table in demo/
	$(BIN)/miga-bench demo --force

# Each process gets its share of the tests in their order, and one that is done takes over from another.
# Bytecode is kept: the many processes that tests start would compile torch and all else again.
test: lint type  ## Lint, type check and every test that needs neither GPU nor minutes
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PROCESSES) --dist worksteal \
	  -m "not gpu and not slow and not vbench and not postgres"

lint: $(STAMP)  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)  ## Check types, on Linux and as macOS has them
	$(BIN)/mypy --platform linux & other=$$!; \
	  $(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin; here=$$?; wait $$other && exit $$here

test-mlflow-postgres: $(STAMP)  ## Tracking on PostgreSQL, in a cluster of its own that goes away again
	$(BIN)/python -c 'import psycopg2' 2> /dev/null || $(BIN)/uv pip install --quiet \
	  --python $(BIN)/python psycopg2-binary
	PY=$(BIN)/python bash tests/with_postgres.sh $(BIN)/python -m pytest -q -m postgres tests/test_tracking.py

test-vbench: $(VBENCH)/.ready  ## Compare scores with VBench's own functions, in .venv-vbench; x86-64 only
	OMP_NUM_THREADS=1 $(VBENCH)/bin/python -m pytest -q -m vbench tests/metrics/test_vbench_live.py

bench-scores: $(VBENCH)/.ready  ## Measure what scores cost beside VBench's own functions; JSON last
	$(VBENCH)/bin/python -m miga_bench.harness.bench.scores

# vbench pins versions that exclude newer Pythons and torch; without its pins it runs beside them. Of decord there
# are wheels for x86-64 only.
$(VBENCH)/.ready: pyproject.toml $(STAMP)
	$(PY) -m venv $(VBENCH)
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(BIN)/uv pip install --quiet \
	  --python $(VBENCH)/bin/python -e ".[dev,vbench]" decord omegaconf easydict einops regex \
	  "imageio[ffmpeg]" scipy tqdm "setuptools<81" wheel
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(BIN)/uv pip install --quiet \
	  --python $(VBENCH)/bin/python --no-deps --no-build-isolation vbench==0.1.5 openai-clip==1.0.1
	@touch $@

bench: $(STAMP)  ## Measure speed, overhead, batches, engines, processes, waiting, memory; JSON last
	$(BIN)/miga-bench bench

bench-export: $(STAMP)  ## Measure eager, torch.compile and ONNX Runtime side by side; JSON last
	$(BIN)/python -m miga_bench.harness.bench.export --videos

endurance: $(STAMP)  ## 20,000 frames of MIGA on each embedded model: memory, files, threads, playing; JSON last
	$(BIN)/python -m miga_bench.harness.endurance --backbone tiny-wan
	$(BIN)/python -m miga_bench.harness.endurance --backbone tiny-videocrafter2

endurance-hour: $(STAMP)  ## The same of an endless run that is stopped after an hour
	$(BIN)/python -m miga_bench.harness.endurance --hours 1

bench-gpu: $(STAMP)  ## Measure the real-size denoisers on a GPU, with random weights; JSON last
	$(BIN)/python -m miga_bench.harness.bench.gpu

train-tiny: $(STAMP)  ## Train the embedded model from scratch on this machine
	$(BIN)/miga-bench train-tiny

clean:  ## Remove caches, build leftovers and demo output (not .venv*, not runs)
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find miga_bench tests -name __pycache__ -type d -prune -exec rm -rf {} +
