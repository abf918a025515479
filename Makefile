# `make` lists the targets. Each one sets up what it needs; a second call finds it ready.

PYTHON ?= python3
# Test processes: auto is one per core.
WORKERS ?= auto
PYTEST_ARGS ?=

# Data that is already on this machine, where there is any.
ifneq ($(wildcard ../shared/data),)
INNERLOOP_DATA ?= $(abspath ../shared/data)
export INNERLOOP_DATA
endif

# The first of the given interpreters that starts (a version manager's shim may exist and not start).
first_working = $(shell for p in $(1); do $$p -c '' 2>/dev/null && echo $$p && break; done)
version_of = $(if $(1),$(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null))
constraints_of = $(wildcard constraints/python$(1).txt)

PYTHON_VERSION := $(call version_of,$(PYTHON))
CONSTRAINTS := $(call constraints_of,$(PYTHON_VERSION))

# The stamp carries the Python version, so another PYTHON starts from an empty environment.
VENV_READY := .venv/ready-$(PYTHON_VERSION)
CORE_READY := .venv-core/ready-$(PYTHON_VERSION)
OLDEST_READY := .venv-oldest/ready
NEWEST_READY := .venv-newest/ready

# $(call install,interpreter,variable that names it,extra,constraints file or nothing)
define install
	@command -v "$(1)" >/dev/null || { \
	  echo "No Python called '$(1)' here: pass $(2)=, a Python of 3.11 or newer." >&2; exit 1; }
	@$(1) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  "innerloop needs Python 3.11 or newer, and $(1) is %d.%d: pass $(2)=." % sys.version_info[:2])'
	@test -e $@ || $(1) -m venv --clear $(@D)
	@$(if $(4),echo "Installing into $(@D) by $(4): a minute or two.",\
	  echo "Notice: no constraints file for this Python: installing the newest packages into $(@D).")
	@$(@D)/bin/python -m pip install -qq --disable-pip-version-check \
	  --editable '.[$(3)]' $(if $(4),--constraint $(4))
	@touch $@
endef

# $(call pytest,environment,arguments)
define pytest
	$(1)/bin/python -m pytest -n $(WORKERS) --dist loadgroup $(2) $(PYTEST_ARGS)
endef

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-core lint docs format test-oldest test-newest clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV_READY) ## make .venv with the package and its tools (PYTHON=python3)

$(VENV_READY): pyproject.toml $(CONSTRAINTS)
	$(call install,$(PYTHON),PYTHON,dev,$(CONSTRAINTS))

demo: $(VENV_READY) ## run the demonstration
	.venv/bin/innerloop demo

test: $(VENV_READY) ## run the tests on every core (PYTEST_ARGS="-k laws")
	$(call pytest,.venv)

test-all: $(VENV_READY) ## run every test, also the long ones: kills, faults, processes, full tables
	$(call pytest,.venv,-m "")

test-core: $(CORE_READY) ## run the tests with the core alone; those that need an extra are skipped
	$(call pytest,.venv-core)

$(CORE_READY): pyproject.toml $(CONSTRAINTS)
	$(call install,$(PYTHON),PYTHON,test-core,$(CONSTRAINTS))

lint: $(VENV_READY) ## check style, format and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright

docs: $(VENV_READY) ## build the documentation in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

format: $(VENV_READY) ## mend style and format where that can be done by itself
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

OLDEST_PYTHON ?= $(call first_working,python3.11 $(PYTHON))

test-oldest: $(OLDEST_READY) ## run the tests on the oldest JAX packages that are promised
	$(call pytest,.venv-oldest)

$(OLDEST_READY): pyproject.toml constraints/oldest.txt
	$(call install,$(OLDEST_PYTHON),OLDEST_PYTHON,test,constraints/oldest.txt)

# NEWEST_CONSTRAINTS= (empty) takes what is newest today.
NEWEST_PYTHON ?= $(call first_working,python3.13 python3.12)
NEWEST_CONSTRAINTS ?= $(call constraints_of,$(call version_of,$(NEWEST_PYTHON)))

test-newest: $(NEWEST_READY) ## run the tests on the newest Python and JAX (NEWEST_PYTHON=...)
	$(call pytest,.venv-newest)

$(NEWEST_READY): pyproject.toml $(wildcard constraints/python3.*.txt)
	@test -n "$(NEWEST_PYTHON)" || { \
	  echo "Found neither python3.13 nor python3.12: pass NEWEST_PYTHON=." >&2; exit 1; }
	$(call install,$(NEWEST_PYTHON),NEWEST_PYTHON,test,$(NEWEST_CONSTRAINTS))

clean: ## remove environments, caches and build outputs; runs/ stays
	rm -rf .venv .venv-core .venv-oldest .venv-newest build dist
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
