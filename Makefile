# Everything needed on a machine with nothing but Python 3.11 or newer and make:
#   make demo    install, then run the demonstration on real tissue
#   make test    install, then every test, with the real weights where they can be fetched
#   make check   what must pass before a commit
#   make docs    the documentation, strictly
# torch is taken from pip's index: on Linux the public one brings the CUDA build (gigabytes), one
# that also offers 2.13.0+cpu brings that. To choose: TORCH="torch==2.13.0 --index-url <an index>"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint check format docs install weights clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is wanted: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	@touch $@

# torch first and alone: the rest must take the build chosen here, not bring another
$(VENV)/.installed: $(VENV)/.made pyproject.toml
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --editable . --group dev
	@touch $@

$(VENV)/.documented: $(VENV)/.installed
	$(PIP) install --quiet --group docs
	@touch $@

install: $(VENV)/.installed

weights: $(VENV)/.installed
	@$(BIN)/histoscribe weights fetch || \
	  echo "No weights: the demo falls back on the classical segmenter, tests that need them skip."

demo: install weights
	$(BIN)/histoscribe demo --out demo-study

# two processes of one thread each: with torch's own threads they would get in each other's way
test: install weights
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

check: lint
	$(BIN)/python -m pytest -q -m "not slow and not weights"

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.documented
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo-study site .pytest_cache .ruff_cache .import_linter_cache .hypothesis
