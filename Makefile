# make install      a virtual environment in .venv with everything for development
# make quickstart   install, then pretrain MAE and SimMIM on real digits and show the result
# make transfer     install, then what that pretraining is worth under probes and fine-tunings, in a table
# make compare      install, then three seeds of MAE, SimMIM and a cross of the two on one page (nine minutes)
# make solar        install, then defects of solar cells by few labels, three seeds, on one page (41 minutes)
# make test         install, then run the tests (five to thirteen minutes on two CPU cores)
# make test-slow    install, then run what is too long for make test: kills, full disks, a soak, every shipped study
# make test-oldest  the tests that depend on versions under the oldest ones that setup.py allows, in .venv-oldest
# make test-newest  the same under the newest, in .venv-newest; PYTHON=python3.13 chooses the Python of both
# make lint         what .ci/run checks: ruff, formatting, types
# make format       repair what ruff can repair
# make docs         install, then build the site into build/site: links are checked, the notebook is executed
PYTHON ?= python3
VENV ?= .venv
EXTRA ?= dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST ?= .venv-oldest
NEWEST ?= .venv-newest
JOBS ?= 2
PIP := -m pip --disable-pip-version-check
# worksteal keeps the tests of a file together, which share what they trained; no other plugin is needed, and loading
# them all takes each process a second
SHARE := -p xdist -n $(JOBS) --dist worksteal
TESTS := PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1
# tests that guard what depends on versions: parts, parity, weights, the engine, the loader, runs
ACROSS ?= tests/contracts tests/parity tests/interop tests/io tests/encoders tests/heads tests/engine tests/data \
	tests/evaluation tests/lab/plan tests/lab/benchmark tests/test_docs.py

.PHONY: install quickstart transfer compare solar test test-slow test-oldest test-newest lint format docs clean

install: $(STAMP)

$(STAMP): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install --quiet --editable '.[$(EXTRA)]'
	@touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/python tools/quickstart.py

transfer: $(STAMP)
	$(BIN)/python tools/sweep.py configs/studies/digits/transfer.yaml --output runs/transfer_digits

compare: $(STAMP)
	$(BIN)/python tools/sweep.py configs/studies/digits/compare.yaml --output runs/compare --jobs 2

solar: $(VENV)/.examples
	$(BIN)/python examples/solar/prepare.py runs/solar
	$(BIN)/python tools/sweep.py configs/studies/solar/transfer.yaml --output runs/solar/study --jobs 2
	$(BIN)/python tools/reconstruct.py runs/solar/study/pretraining/mae-seed0 runs/solar/cracks.txt --output runs/solar/cracks.png
	$(BIN)/python tools/evaluate.py dense runs/solar/study/fine-tuning-all-labels/mae-seed0 runs/solar/cracks.txt \
		--output runs/solar/attention
	$(BIN)/python examples/solar/frozen.py runs/solar
	$(BIN)/python examples/solar/page.py runs/solar

$(VENV)/.examples: $(STAMP)
	$(BIN)/python $(PIP) install --quiet --editable '.[examples]'
	@touch $@

test: $(STAMP)
	$(TESTS) $(BIN)/python -m pytest $(SHARE) -m 'not slow'

test-slow: $(STAMP)
	$(TESTS) $(BIN)/python -m pytest $(SHARE) -m slow

test-oldest: $(OLDEST)/.installed
	$(call across,$(OLDEST))

test-newest: newest
	$(call across,$(NEWEST))

$(OLDEST)/.installed: setup.py tests/oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python $(PIP) install --quiet --no-compile --constraint tests/oldest.txt --editable '.[test]'
	@touch $@

.PHONY: newest
newest:
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python $(PIP) install --quiet --no-compile --upgrade --upgrade-strategy eager --editable '.[test]'

define across
	@$(1)/bin/python --version
	@$(1)/bin/python $(PIP) freeze --exclude-editable --requirement tests/oldest.txt | sed '/^## /,$$d; /^#/d'
	$(TESTS) $(1)/bin/python -m pytest $(SHARE) -m 'not slow' $(ACROSS)
endef

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) runs build dist site *.egg-info
