# `make` alone lists the targets. report, test, lint and wheel set up .venv themselves, once; gpu installs nothing.
PYTHON ?= python3
JOBS   ?= auto
ARGS   ?=
OUT    ?= reports/gpu

BIN       := .venv/bin
READY     := .venv/.ready
SMOKE     := tests/test_packaging.py
NEW_ENOUGH = -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
# Triton's interpreter is numpy: one thread in each of several test processes beats several threads in each.
ONE_THREAD = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help report test lint docs gpu bench-host wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: PYTHON (python3), ARGS (more arguments for report, test or gpu), JOBS (processes of test), OUT (of gpu)'

report: $(READY)  ## profile three models in three grad modes, on a GPU or the CPU: reports/latest/
	@$(BIN)/tgrad profile tutorial digits mlp --modes grad,no_grad,inference_mode --out reports/latest --force $(ARGS)

test: $(READY)  ## run the tests (those that need a GPU are skipped where there is none)
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 $(ARGS)

lint: $(READY)  ## ruff and mypy
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

docs: $(READY)  ## write the pages on the API from the docstrings: docs/api.md and docs/api/
	@$(BIN)/python -m docs.api

# The machine with the GPU may have other versions than constraints.txt: there a warning is not a failure (-W default).
# Several processes, where there is xdist: most of the time goes into compiling kernels. After --until the rest of the
# tests is skipped; `timeout` ends what hangs, by the signal after which pytest still writes what it has.
# Both parts always run, and together stay under nine minutes; the benchmarks' table is the last thing printed.
gpu:  ## on a CUDA machine, with the python3 there: the GPU tests, then the benchmarks: reports/gpu/
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || \
		{ echo 'make gpu: $(PYTHON) has no torch that sees a CUDA device' >&2; exit 3; }
	@export PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" PYTHONUNBUFFERED=1; failed=0; \
	jobs=$$($(PYTHON) -c 'import os, xdist; print("-n", min(12, os.cpu_count() or 1))' 2>/dev/null); \
	timeout -s INT -k 15 230 $(PYTHON) -m pytest tests -m gpu $$jobs -p no:cacheprovider -W default -q --tb=short \
		--continue-on-collection-errors --maxfail 50 --until $$(($$(date +%s) + 205)) --junitxml="$(OUT)/tests.xml" $(ARGS) \
		|| { failed=$$?; echo "make gpu: the tests failed (exit $$failed); the benchmarks run all the same" >&2; }; \
	timeout -k 10 270 $(PYTHON) -m tests.benchmarks.gpu --out "$(OUT)" \
		|| { failed=$$?; echo "make gpu: the benchmarks failed (exit $$failed)" >&2; }; \
	exit $$failed

bench-host: $(READY)  ## host time of an op beside PyTorch's CPU dispatch, over a stub driver (needs gcc)
	@$(ONE_THREAD) PYTHONPATH=. $(BIN)/python -m tests.benchmarks.host $(ARGS)

wheel: $(READY)  ## build sdist and wheel into dist/, install the wheel in an empty folder and try it
	@rm -rf build dist
	@$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null && ls -1 dist/*
	@$(BIN)/python $(SMOKE) dist/*.whl

clean:  ## remove .venv, build products and caches; reports stay
	@rm -rf .venv build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	@find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) $(NEW_ENOUGH) || \
		{ echo 'make: $(PYTHON) is missing or older than Python 3.11; name another: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'make: $(PYTHON) lacks the venv module (Debian and Ubuntu: apt install python3-venv)' >&2; exit 1; }
	@echo 'make: installing tgrad and its tools into .venv (once; some minutes)'
	@$(BIN)/python $(NEW_ENOUGH) || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
