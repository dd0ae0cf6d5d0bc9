# Needs Python 3.11 (or newer) and make, nothing else. Everything is put into .venv/, once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# What the demo needs is a third of what the tests need, and is what a newcomer waits for.
DEMO := .venv/.demo
STAMP := .venv/.installed
COMPILED := .venv/.compiled
RECIPIENTS ?= 20000
# Asked for when it is needed: tests/support/hot_tests.py says which and why.
HOT_TESTS = $(shell $(BIN)/python -m tests.support.hot_tests)
# More than there are processors: a third of the tests' time is waiting for what takes its time.
WORKERS ?= $(shell echo $$(($$(nproc 2>/dev/null || echo 2) * 3 / 2)))
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
BENCH_SCALE ?= 1
UV ?= $(shell command -v uv || echo $(BIN)/uv)
COMPILE := $(UV) pip compile --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --quiet

# Some hundred processes start in a run: what one of them has translated into bytecode is kept for the others.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup compile demo test lint bench interop interop-bounces wheel lock clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install all that the other targets need into .venv/, as locked in requirements/; again only what changed

$(DEMO): requirements/demo.lock pyproject.toml
	@.ci/install "$(PYTHON)" requirements/demo.lock
	@touch $@

$(STAMP): requirements/dev.lock pyproject.toml
	@.ci/install "$(PYTHON)" requirements/dev.lock
	@touch $(DEMO) $@

compile: $(COMPILED) ## Compile the hot path (setup.py lists it) where there is a C compiler; without one it runs as it is

# Asked for only by what compiles. Why more than what is listed is followed: tests/support/compiled.py.
.SECONDEXPANSION:
$(COMPILED): $(STAMP) setup.py $$(shell "$$(PYTHON)" -m tests.support.compiled)
	@if "$(BIN)/python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
	    && command -v cc >/dev/null; then \
	  echo "compiling the hot path, which takes a minute or two"; \
	  MTA_COMPILE=1 $(BIN)/python -W ignore setup.py --quiet build_ext --inplace >$(COMPILED).log 2>&1 \
	    || { tail -n 40 $(COMPILED).log; exit 1; }; \
	  find mta -name '*.so' -exec touch {} +; \
	else \
	  find mta -name '*.so' -delete; \
	  echo "NOT COMPILED: no C compiler with Python.h here; all works, at about half the speed"; \
	fi
	@touch $@

demo: $(DEMO) ## Show it working: RECIPIENTS=20000 on a database, a daemon and a far end of its own
	@if ls mta/*__mypyc* >/dev/null 2>&1 && ! $(MAKE) --question compile >/dev/null 2>&1; then \
	  echo "what was compiled is older than the sources, so the sources run; 'make compile' compiles them"; \
	  export MTA_INTERPRETED=1; \
	fi; \
	$(BIN)/mta demo --recipients $(RECIPIENTS)

test: lint compile ## Lint, types, import rules, all tests; those of the hot path compiled and as it stands
	$(PYTEST)
	@if ls mta/*__mypyc* >/dev/null 2>&1; then \
	  echo "the hot path's tests again, not compiled"; \
	  MTA_INTERPRETED=1 $(PYTEST) $(HOT_TESTS); fi

lint: setup ## Lint, types and import rules only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: compile ## Measure this machine, every scenario: a quarter of an hour; BENCH_SCALE=0.1 is a quick look
	$(BIN)/python -m bench all --scale $(BENCH_SCALE) --json-out bench.json
	$(BIN)/python -m bench picture bench.json bench.svg

interop: compile ## Deliver to real mail servers, SERVERS="postfix mox" or all ten: needs root on Linux, takes a quarter of an hour
	$(BIN)/python -m tests.interop $(SERVERS)

interop-bounces: compile ## Read what real mail servers write when they cannot deliver, SERVERS="postfix mox" or all ten: as interop, in two minutes
	$(BIN)/python -m tests.interop --bounces $(SERVERS)

wheel: compile ## Build dist/mta-*.whl for a node, compiled where this checkout is
	MTA_COMPILE=$$(ls mta/*__mypyc* >/dev/null 2>&1 && echo 1 || echo 0) \
	  $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

lock: ## Resolve pyproject.toml anew into requirements/ (needs uv)
	$(COMPILE) --upgrade pyproject.toml -o requirements/run.lock
	$(COMPILE) --upgrade pyproject.toml --extra dev --extra demo requirements/install.in -o requirements/dev.lock
	$(COMPILE) pyproject.toml --extra demo requirements/install.in -c requirements/dev.lock -o requirements/demo.lock
	$(COMPILE) requirements/install.in -c requirements/dev.lock -o requirements/install.lock

clean: ## Remove all that the other targets made, .venv/ too
	rm -rf .venv .interop build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache *.egg-info
	find mta -name '*.so' -delete
	find mta bench tests -name __pycache__ -prune -exec rm -rf {} +
