# `make demo` and `make test` need Python 3.11 or 3.12 with pip and venv, and nothing else.
PYTHON := .venv/bin/python
# Where Python may not keep what it has compiled, each of the hundred processes of the tests compiles
# the project and the tests again.
export PYTHONDONTWRITEBYTECODE :=
# Tests that start no server, no browser and no training.
FAST_TESTS := tests/unit tests/jobs tests/models tests/media tests/parity tests/worker
# Two processes; tests/conftest.py says which tests stay together. In the order of the folders, short
# files come last, and both processes end at nearly the same time.
PARALLEL := -n 2 --dist loadgroup --no-loadscope-reorder
# The types are checked by one process, which takes a minute and leaves a core to the first tests. Both
# run to their end, and a failure of either is one of make.
BESIDE_LINT := $(MAKE) --no-print-directory --keep-going --jobs=2 lint

.PHONY: setup demo test test-all tests all-tests coverage all-tests-covered test-fast test-lowest soak serve lint format bench lock image test-image clean

setup:
	@scripts/setup

demo: setup  ## a real clip in, the same clip with sound out, over HTTP
	@$(PYTHON) -m scripts.demo

# Continuous integration runs the long tests too. It counts the lines that no test runs where that is
# cheap: before Python 3.12 it takes a third more time.
ifdef CI
test: setup
	@if $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 12))"; \
	then $(MAKE) --no-print-directory coverage; else $(MAKE) --no-print-directory test-all; fi
else
test: setup  ## the tests of up to seven seconds each, without a browser
	@$(BESIDE_LINT) tests
endif

tests:
	@$(PYTHON) -m pytest $(PARALLEL)

test-all: setup  ## all tests but those of make soak
	@$(BESIDE_LINT) all-tests

all-tests:
	@$(PYTHON) -m pytest $(PARALLEL) -m "not soak"

test-fast: setup  ## the tests of single parts, in a minute
	@$(PYTHON) -m pytest -q $(PARALLEL) -m "not soak and not long and not slow" $(FAST_TESTS)

coverage: setup  ## make test-all, with a report of the lines that no test runs
	@$(BESIDE_LINT) all-tests-covered

all-tests-covered:
	@rm -rf .coverage
	@.venv/bin/coverage run -m pytest $(PARALLEL) -m "not soak"
	@.venv/bin/coverage combine --quiet
	@.venv/bin/coverage report

# Two of them kill processes for SOAK_SECONDS each, an hour unless it is set.
soak: setup  ## the tests that take minutes or hours each
	@$(PYTHON) -m pytest -m soak

test-lowest: setup  ## the core tests on the lowest version of each dependency
	@scripts/lowest

serve: setup  ## http://127.0.0.1:3000
	@$(PYTHON) -m foley.cli.app serve

lint: setup
	@scripts/check

format: setup
	@.venv/bin/ruff format -q . && .venv/bin/ruff check -q --fix .

bench: setup  ## prints tables; add --record by hand to keep one
	@$(PYTHON) -m benchmarks.bench_media
	@$(PYTHON) -m benchmarks.bench_pipeline

lock:  ## needs uv
	@scripts/lock

image: setup  ## foley:full and foley:slim; needs Docker
	@scripts/image

test-image: setup  ## the real definition on a stand-in base; needs root on Debian, no Docker
	@scripts/test-image

clean:
	@rm -rf .venv .venv-lowest demo build dist ./*.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
