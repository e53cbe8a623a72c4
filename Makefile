# Every target makes the virtual environment it needs. Other places: make PYTHON=python3.12 VENV=/some/where

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= 2

python := $(VENV)/bin/python
installed := $(VENV)/.installed

# What measures waiting times runs by itself, after the others. 5 says that no test was chosen.
chosen = || [ $$? -eq 5 ]
pytest = $(python) -m pytest -n $(JOBS) --dist worksteal -m "not alone" $(1) $(chosen)
alone = $(python) -m pytest -m alone $(1) $(chosen)

.DEFAULT_GOAL := help
.PHONY: help demo test test-full lint type bench bench-full check venv clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(installed) ## record real commands in a new repository and look at them
	$(python) docs/demo.py

test: $(installed) ## run every test in its short form; ARGS="-k word" picks some
	$(call pytest,$(ARGS))
	$(call alone,$(ARGS))

test-full: $(installed) ## run the long forms too
	$(call pytest,--full $(ARGS))
	$(call alone,--full $(ARGS))

lint: $(installed) ## look for mistakes
	$(python) -m ruff check

type: $(installed) ## check the types
	$(python) -m mypy

bench: $(installed) ## measure, beside peers; writes the tables and plots of docs/performance.md
	$(python) -m benchmarks --page docs/performance.md $(ARGS)

bench-full: $(installed) ## the same with 100 to 100 000 runs; takes half an hour
	$(python) -m benchmarks --full --page docs/performance.md $(ARGS)

check: lint type test ## lint, type and test

venv: $(installed) ## make the virtual environment

$(installed): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean: ## remove what these targets made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
