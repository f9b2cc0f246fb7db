# rlframe: `make smoke` runs the main job, `make test` the tests; each sets up all it needs first.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
MODEL ?= tiny_qwen3
# Runs of another model have names of their own.
SUFFIX := $(if $(filter tiny_qwen3,$(MODEL)),,_$(MODEL))
ARGS ?=
# One BLAS thread a process: more spin against each other.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
TESTS ?= tests

.PHONY: help setup smoke test test-all test-agents lint doctor clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  e.g.  make smoke SEED=1 ARGS='steps=50'    make smoke MODEL=glm_tiny    make test TESTS=tests/rlframe"

setup: ## virtual environment with the locked dependencies (CPU or CUDA, detected)
	@$(PYTHON) scripts/setup.py

smoke: setup ## the main job: a tiny model gets better by PPO (SFT warm start first); SEED=, MODEL=glm_tiny, ARGS=
	@$(BIN)/rlframe train experiment=sft_tiny model=$(MODEL) name=sft_tiny$(SUFFIX)
	@$(BIN)/rlframe train experiment=smoke seed=$(SEED) name=smoke$(SUFFIX)_$(SEED) model.path=runs/sft_tiny$(SUFFIX)/hf $(ARGS)

test: setup lint ## linters and all tests but the slow ones
	@$(BIN)/python -m pytest $(TESTS) -m 'not slow and not gpu' -n 2 --dist loadgroup

test-all: setup lint ## every test, the slow ones too
	@$(BIN)/python -m pytest $(TESTS) -m 'not gpu' -n 2 --dist loadgroup

test-agents: setup ## the real agent programs and environment packages, code_repair (installs into .agents/, .peers/; skips what it can't)
	@command -v bwrap > /dev/null || { apt-get update -qq && apt-get install -y -qq bubblewrap tmux; } > /dev/null 2>&1 \
	  || echo "bubblewrap is missing and could not be installed: its tests are skipped"
	@$(BIN)/python scripts/install_agents.py || true
	@$(BIN)/python scripts/install_peers.py || true
	@$(BIN)/python scripts/build_code_repair.py || echo "code_repair could not be downloaded: its tests are skipped"
	@$(BIN)/python -m pytest tests/agents -m 'not gpu' -rs
	@$(BIN)/python -m pytest tests/envs/test_envs_code_repair.py -m 'not gpu and not slow' -rs

lint: setup ## ruff, mypy, import rules
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy -p rlframe -p rollout -p trainer -p envs --no-error-summary
	@$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }

doctor: setup ## what this machine has, what it lacks, how to mend it
	@$(BIN)/rlframe doctor

clean: ## remove the environment and caches; runs/ stays
	rm -rf .venv .peers .venv-trl .venv-trl-opd .venv-verl .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
