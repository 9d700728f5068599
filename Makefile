# make quickstart   install, then pretrain MAE and SimMIM on real digits and show what came out
# make transfer     install, then what that pretraining is worth under probes and fine-tunings, in a table
# make compare      install, then three seeds of MAE, SimMIM and a cross of the two on one page (nine minutes)
# make test         install, then run the tests (about eight minutes on two cores)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart transfer compare test test-slow lint format clean

install: $(STAMP)

$(STAMP): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/python tools/quickstart.py

transfer: $(STAMP)
	$(BIN)/python tools/sweep.py configs/studies/digits/transfer.yaml --output runs/transfer_digits

compare: $(STAMP)
	$(BIN)/python tools/sweep.py configs/studies/digits/compare.yaml --output runs/compare --jobs 2

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build dist *.egg-info
