# make demo   the main job on a real image, from nothing
# make test   all checks and tests, from nothing (this is what CI runs)
# make install   the virtual environment alone
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= muvit-demo
XVFB := xvfb-run -a -s "-screen 0 1280x800x24"

.PHONY: help install demo test lint quick gui slow docs clean

help:
	@sed -n 's/^# //p' Makefile | head -3

install: $(STAMP)

# torch comes first and pinned: a later resolution would otherwise choose another build.
$(STAMP): pyproject.toml constraints.txt scripts/system_packages.sh
	@scripts/system_packages.sh
	@echo "Creating $(VENV) and installing pinned packages (one to three minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[gui,cluster,tensorboard,test,lint,docs,parity]"
	@touch $(STAMP)

demo: install
	@$(BIN)/napari-muvit demo --output $(DEMO)

test: install lint docs quick gui

lint: install
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/npe2 validate src/napari_muvit/napari.yaml

# Fast tests first; what needs a screen runs in a process of its own under Xvfb.
quick: install
	$(BIN)/python -m pytest -m "not gui" -q --durations=10

gui: install
	$(XVFB) $(BIN)/python -m pytest -m gui -q --durations=10

slow: install
	$(XVFB) $(BIN)/python -m pytest --slow -q --durations=20

docs: install
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
