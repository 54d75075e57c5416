# make setup   an environment in .venv with everything the project needs
# make demo    the main job, whole and small: scenes -> cache -> models -> samples -> report
#              make demo CLIPS=folder does the same on your own videos
#              make demo FROM_SCRATCH=1 trains both models from scratch, not from the bundled ones
# make test    the tests that guard every day
# make test-slow  the rest: kills, real videos, Ray's losses
# make test-soak  what takes minutes: clusters that lose nodes, files of two hours
# make test-gpu  what needs a CUDA device
# make check   ruff, mypy, import-linter

PYTHON ?= python3
DEMO ?= demo
CLIPS ?=
FROM_SCRATCH ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow test-soak test-gpu check clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; use make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,dev]'
	@touch $@

demo: setup
	$(BIN)/mmldm demo --out $(DEMO) $(if $(CLIPS),--clips '$(CLIPS)') $(if $(FROM_SCRATCH),--from-scratch)

test: setup
	$(BIN)/python -m pytest -q -n auto -m 'not slow and not gpu and not soak'

test-slow: setup
	$(BIN)/python -m pytest -q -n auto -m 'slow and not gpu and not soak'

test-soak: setup
	$(BIN)/python -m pytest -q -m soak

test-gpu: setup
	$(BIN)/python -m pytest -q -m gpu

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(DEMO)
