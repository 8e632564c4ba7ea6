PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SETTINGS := pyproject.toml constraints.txt

.PHONY: test lint types docs tests coverage nightly torture bench demo clean

test: lint types docs tests ## everything that CI runs

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

docs: .venv/dev ## the site, in docs/build/html; a warning is an error
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/build/html

tests: .venv/dev
	$(BIN)/python -m pytest --doctest-modules -n 2 helios tests property_tests

# Tests that end processes by force, or wait for one, may fail while they are measured.
coverage: .venv/dev ## which lines no test runs; takes twice as long as the tests
	rm -f .coverage .coverage.*
	-$(BIN)/python -m coverage run -m pytest -q -n 2 --doctest-modules helios tests property_tests
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report --fail-under 95

nightly: .venv/dev ## the laws with 10,000 examples each, and the long tables of ranks
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n 2 property_tests
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n 2 -m nightly tests

torture: .venv/dev ## an hour of SIGKILLs, failing disks and hostile files; needs Linux
	$(BIN)/python -m tests.torture --minutes $(or $(MINUTES),60) --report torture.md

bench: .venv/bench ## what an update costs, beside other libraries; writes docs/performance.md
	$(BIN)/python -m benchmarks --rounds $(or $(ROUNDS),20)

demo: .venv/demo ## trains a classifier of handwritten digits
	$(BIN)/python -m helios.examples.digits

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python $(SETTINGS)
	$(INSTALL) --editable '.[demo]'
	@touch $@

.venv/dev: .venv/bin/python $(SETTINGS)
	$(INSTALL) --editable '.[dev]'
	@touch $@ .venv/demo

# helios-ml is imported by the name of this project, and asks for much that it needs elsewhere.
.venv/bench: .venv/bin/python $(SETTINGS)
	$(INSTALL) --editable '.[bench]'
	rm -rf .venv/helios-ml
	$(INSTALL) --no-deps --target .venv/helios-ml helios-ml
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .hypothesis
