# make demo   the main job on a real image, from nothing
# make test   all checks and tests, from nothing (this is what CI runs)
# make install   the virtual environment alone
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= muvit-demo
SCREEN := -o xvfb_width=1280 -o xvfb_height=800 -o xvfb_colordepth=24
# Two processes of tests with a thread each.
TWO := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help install demo test lint quick gui pyside slow docs test-core test-lowest data package \
	clean

help:
	@sed -n 's/^# //p' Makefile | head -3

install: $(STAMP)

# torch comes first and pinned: a later resolution would otherwise choose another build.
$(STAMP): pyproject.toml constraints.txt scripts/system_packages.sh
	@scripts/system_packages.sh
	@echo "Creating $(VENV) and installing pinned packages (a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[gui,cluster,tensorboard,test,screen,lint,docs,parity]"
	@touch $(STAMP)

demo: install
	@$(BIN)/napari-muvit demo --output $(DEMO)

test: install lint docs quick gui

lint: install
	$(BIN)/ruff check src tests benchmarks examples docs scripts
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/npe2 validate src/napari_muvit/napari.yaml

# Fast tests first, in two processes with a thread each.
quick: install
	$(TWO) $(BIN)/python -m pytest -n 2 --dist loadfile -q --no-xvfb \
		--durations=10 -m "not gui"

# Each process has a screen of its own: on one, napari crashed when both drew.
gui: install
	$(TWO) $(BIN)/python -m pytest -n 2 --dist loadfile -q $(SCREEN) \
		--durations=10 -m gui

# Every widget once with the other Qt binding, which lies beside the first one.
PYSIDE := $(VENV)/pyside
$(PYSIDE)/PySide6: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(PYSIDE) PySide6-Essentials==6.12.0 shiboken6==6.12.0
	@touch $@

pyside: install $(PYSIDE)/PySide6
	QT_API=pyside6 PYTEST_QT_API=pyside6 PYTHONPATH=$(PYSIDE) \
		$(BIN)/python -m pytest tests/gui/test_bindings.py -q $(SCREEN)

slow: install
	$(BIN)/python -m pytest --slow -q --durations=20 $(SCREEN)

docs: install
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html

# Without napari and Qt: the wheel in an environment of its own, and every test that needs neither.
CORE := .venv-core
test-core:
	@test -x $(CORE)/bin/python || $(PYTHON) -m venv $(CORE)
	@$(CORE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@rm -rf build/core && $(CORE)/bin/python -m pip wheel --quiet --no-deps -w build/core .
	@$(CORE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--force-reinstall --no-deps build/core/*.whl
	@$(CORE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		"napari-muvit[cluster,tensorboard,test] @ file://$$(echo $(CURDIR)/build/core/*.whl)"
	@! $(CORE)/bin/python -c "import napari" 2>/dev/null
	$(TWO) $(CORE)/bin/python -m pytest -n 2 --dist loadfile tests --ignore tests/gui \
		--ignore tests/plugin -m "not gui" -p no:pytest-qt -q

# The lowest versions that pyproject.toml allows.
LOWEST := .venv-lowest
test-lowest:
	@scripts/system_packages.sh
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-lowest.txt torch
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-lowest.txt -e ".[gui,cluster,remote,tensorboard,test]"
	$(TWO) $(LOWEST)/bin/python -m pytest -n 2 --dist loadfile -m "not gui" -q

# The data part under another Python (make data PYTHON=python3.13): newest libraries, no torch.
data:
	scripts/test_data.sh $(PYTHON)

# Wheel and sdist in dist/, checked as PyPI checks them.
package: install
	@rm -rf dist
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build twine
	$(BIN)/python -m build --installer=pip -o dist .
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) $(CORE) $(LOWEST) build dist .pytest_cache .mypy_cache .ruff_cache
