# Two commands to know: `make run` runs the example pipeline, `make test` passes the tests.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

OUT ?= $(CURDIR)/build/etl

.PHONY: run test test-compiled test-pure test-long figures perf lint docs clean install

run: $(INSTALLED)
	@$(BIN)/titan-fast run examples/etl/etl.yaml --local --set out=$(OUT)

install: $(INSTALLED)

# The compiled modules are part of the installation, so a change to one of them installs again.
$(INSTALLED): pyproject.toml setup.py $(wildcard titan_fast/*.pyx) titan_fast/_layout.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "titan-fast needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

test: $(INSTALLED)
	@if TITAN_FAST_ACCEL=require $(BIN)/python -c 'import titan_fast._accel' 2>/dev/null; then \
	    $(MAKE) --no-print-directory test-compiled test-pure; \
	else \
	    echo "No compiled modules here (no C compiler?): testing the pure-Python twins alone."; \
	    $(MAKE) --no-print-directory test-pure PYTEST_ARGS='--no-compiled $(PYTEST_ARGS)' PURE_TESTS=tests; \
	fi

test-compiled: $(INSTALLED)
	@echo "== tests, compiled"
	@TITAN_FAST_ACCEL=require $(BIN)/python -m pytest $(PYTEST_ARGS)

# What the twins cannot change (kills of real processes, cluster-hours, sizes, whole clusters) ran compiled already.
PURE_TESTS ?= tests --ignore=tests/simulation --ignore=tests/kill --ignore=tests/master/scale \
    --ignore=tests/end_to_end -m 'not kill'
test-pure: $(INSTALLED)
	@echo "== tests, pure Python"
	@TITAN_FAST_ACCEL=off $(BIN)/python -m pytest $(PURE_TESTS) $(PYTEST_ARGS)
	@TITAN_FAST_ACCEL=off $(BIN)/python -m pytest tests/end_to_end -m smoke $(PYTEST_ARGS)

test-long: $(INSTALLED)
	@TITAN_FAST_ACCEL=require $(BIN)/python -m pytest --long -m long $(PYTEST_ARGS)

perf: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" perf/run.sh

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python docs/generate.py --check

docs: $(INSTALLED)
	@$(BIN)/python docs/generate.py

# The tables of docs/reliability.md and docs/performance.md, from the reports that tests and benchmarks left in
# build/reports.
figures: $(INSTALLED)
	@$(BIN)/python docs/reliability.py
	@$(BIN)/python docs/performance.py

clean:
	rm -rf $(VENV) build *.egg-info titan_fast/*.so
