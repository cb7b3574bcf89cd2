PYTHON ?= python3
BIN := .venv/bin
# Every test runs on one thread, so that its bits repeat; the files of tests are spread over the cores.
SPREAD := -n logical --maxprocesses=4 --dist=loadfile

.PHONY: help demo test check soak sbom setup clean

help:  ## what can be made
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

demo: setup  ## set up, then make isoframe-demo.mp4
	$(BIN)/isoframe demo --out isoframe-demo.mp4

test: setup  ## the tests, with the ten slowest listed
	$(BIN)/pytest $(SPREAD) -m "not alone" --durations=10
	$(BIN)/pytest -m alone
	TRITON_INTERPRET=1 $(BIN)/pytest -k kernel $(SPREAD) --durations=10

check: setup  ## what a commit must pass besides the tests: lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: setup  ## the slow proofs, minutes each
	$(BIN)/pip install -c constraints.txt -e '.[dev,ray]'
	ISOFRAME_SOAK=1 $(BIN)/pytest -m soak --durations=10

sbom: setup  ## a list of all installed packages with versions and licences: isoframe.cdx.json (CycloneDX)
	$(BIN)/python tests/oracles/sbom.py isoframe.cdx.json

setup: .venv/.installed  ## a virtual environment with everything for development

.venv/.installed: pyproject.toml constraints.txt setup.py
	$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + "; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	touch $@

clean:  ## remove the virtual environment and what builds left
	rm -rf .venv build dist *.egg-info
