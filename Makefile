# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_OUT ?= runs/demo

# One thread a process, one process a core: on small machines this beats one process on all cores.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test fast check fmt docs setup wheel bench clean help

help:
	@echo "make demo   install what is needed, train a small net on digits, write a page about its units"
	@echo "make test   install what the tests need and run them all"
	@echo "make fast   the unmarked tests only (under two minutes)"
	@echo "make check  format, lint and types, changing nothing;  make fmt  format and fix"
	@echo "make docs   build the documentation into site/;  make wheel  build, install and run the wheel elsewhere"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Pellucid needs Python >= 3.11, {sys.executable} is {v.major}.{v.minor}; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing pellucid into $(VENV) (about 5 GB with torch, a minute or two) ..."
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-all: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing pellucid with everything the tests need into $(VENV) (about 7 GB, some minutes) ..."
	$(PIP) -e '.[all,test,dev,docs]'
	@touch $@ $(VENV)/.installed-core

setup: $(VENV)/.installed-all

demo: $(VENV)/.installed-core
	$(BIN)/pellucid demo --out $(DEMO_OUT)

test: $(VENV)/.installed-all
	$(BIN)/python -m pytest -n auto --dist worksteal

fast: $(VENV)/.installed-all
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not data and not browser and not multiprocess and not gpu"

check: $(VENV)/.installed-all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

fmt: $(VENV)/.installed-all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-all
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(VENV)/.installed-all
	VENV=$(VENV) sh tools/check_wheel.sh

clean:
	rm -rf build dist site .pytest_cache .ruff_cache
