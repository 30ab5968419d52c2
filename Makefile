# `make` lists the targets. Nothing is done twice: stamp files in .venv remember what was built from what.

VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
BUILT := $(VENV)/.built
DRIVER_BUILT := $(VENV)/.driver_interfaces_built

PIP := $(BIN)/pip --disable-pip-version-check
BUILD_RULES := setup.py pyproject.toml $(wildcard cmake/*)
INTERFACES := $(wildcard msg/*.msg srv/*.srv action/*.action)
DRIVER := interfaces/interbotix_xs_msgs
# Files of tests at a time, each in a ROS domain of its own; 0: one after another, in this process.
TEST_PROCESSES ?= 2

.PHONY: help env demo test test-fast lint types clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(BUILT) $(DRIVER_BUILT)  ## build the environment in .venv (minutes, once)

demo: env  ## the whole story on the simulated twin, without robot or GPU
	$(BIN)/world-gymnast demo

test: env  ## tests, without those marked slow or gpu
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "not slow and not gpu"

test-fast: env  ## tests without ROS, simulator, torch and other processes, under a minute
	$(BIN)/python -m pytest --fast -n $(TEST_PROCESSES) --dist loadfile -m "not slow and not gpu" -q -rfE

lint: env  ## ruff
	$(BIN)/ruff check .

types: env  ## mypy, strict, all of the package
	$(BIN)/mypy

clean:  ## remove the environment and everything generated
	rm -rf $(VENV) build install log *.egg-info $(DRIVER)/build $(DRIVER)/*.egg-info
	rm -rf world_gymnast_ros/msg world_gymnast_ros/srv world_gymnast_ros/action world_gymnast_ros/*.so
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(LOCKED): requirements.lock tools/install_torch | $(BIN)/pip
	$(PIP) install --quiet --no-deps -r requirements.lock
	tools/install_torch $(VENV)
	@touch $@

$(BIN)/pip:
	python=$$(tools/prerequisites) && $$python -m venv $(VENV)

# Editable: the Python modules stay in the source tree, and the generated interfaces come to lie beside them.
$(BUILT): $(LOCKED) package.xml CMakeLists.txt $(BUILD_RULES) $(INTERFACES) $(wildcard scripts/* launch/*)
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# Interbotix's messages, unless the driver's own package is there already.
$(DRIVER_BUILT): $(BUILT) $(wildcard $(DRIVER)/*.txt $(DRIVER)/*.xml $(DRIVER)/*.py $(DRIVER)/msg/* $(DRIVER)/srv/*)
	@if $(PIP) show --quiet interbotix-xs-msgs 2>/dev/null || ! $(BIN)/python -c 'import interbotix_xs_msgs' 2>/dev/null; \
	then set -x; $(PIP) install --quiet --no-build-isolation --no-deps ./$(DRIVER); fi
	@touch $@
