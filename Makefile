PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test soak setup clean

demo: setup
	$(BIN)/isoframe demo --out isoframe-demo.mp4

test: setup
	$(BIN)/pytest --durations=10
	TRITON_INTERPRET=1 $(BIN)/pytest -k kernel --durations=10

soak: setup
	$(BIN)/pip install -c constraints.txt -e '.[dev,ray]'
	ISOFRAME_SOAK=1 $(BIN)/pytest -m soak --durations=10

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt setup.py
	$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + "; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
