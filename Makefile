# The commands of this repository; `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test check fix docs ops wheel bench clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s  %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.tool ## a small trained checkpoint, compiled and asked about a picture
	@rm -rf out/demo
	$(BIN)/python tool.py compile examples/nano/checkpoint out/demo/artifact --recipe fp32 --target cpu --max-batch-size 8 --max-kv-cache-capacity 256
	$(BIN)/python tool.py run out/demo/artifact --image examples/numbers.png "Add the numbers."

test: check ## the checks, then every test
	@$(BIN)/python -m pytest -q

check: $(VENV)/.dev ## lint, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

fix: $(VENV)/.dev ## repair lint and format where a tool can
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

docs: $(VENV)/.tool ## rewrite docs/cli.md from --help
	@$(BIN)/python -m commands.cli_page > docs/cli.md.new
	@mv docs/cli.md.new docs/cli.md

ops: $(VENV)/.python ## build the kernels that target cpu is faster with; needs a C++ compiler
	@$(BIN)/python -m runtime.ops.build

wheel: $(VENV)/.dev ## the runtime as dist/kimivl-*.whl
	@rm -rf build  # setuptools would pack modules that no longer exist
	@$(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist . > /dev/null
	@ls dist/kimivl-*.whl

bench: $(VENV)/.tool ## time the tiny model and two full-size layers
	@$(BIN)/python -m benchmarks.run

clean: ## remove what these commands made; other artifacts in out/ stay
	@rm -rf .venv build dist kimivl.egg-info out/demo .mypy_cache .pytest_cache .ruff_cache

# A stamp stands for a finished installation: an interrupted one starts again.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and $(PYTHON) is not; try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@touch $@

# torch goes first, alone, so that nothing else chooses its version.
$(VENV)/.tool: pyproject.toml $(VENV)/.python
	@echo "Installing torch and the toolkit into $(VENV); this takes some minutes once ..."
	@$(PIP) torch==2.13.0
	@$(PIP) --editable '.[tool]'
	@touch $@

$(VENV)/.plans: $(VENV)/.tool
	@echo "Installing what builds plans of TensorRT-RTX into $(VENV) ..."
	@$(PIP) --editable '.[tool,plans,serve]'
	@touch $@

# torchvision serves the tests alone: transformers' image processor, the oracle for our patches,
# asks for it. Without its dependencies, so that it cannot replace torch.
$(VENV)/.dev: $(VENV)/.plans
	@echo "Installing the development tools into $(VENV) ..."
	@$(PIP) --group dev
	@$(PIP) --no-deps torchvision==0.28.0
	@touch $@

# A real server for its tests. In an environment of its own: its Python stub needs numpy < 2.
$(VENV)/.triton: $(VENV)/.dev
	@echo "Installing a Triton server for the tests into $(VENV)/triton ..."
	@$(BIN)/python -m venv $(VENV)/triton
	@$(VENV)/triton/bin/pip install -qq --disable-pip-version-check --editable '.[serve]' 'numpy<2'
	@$(VENV)/triton/bin/pip install -qq --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0
	@$(BIN)/python -m tests.triton_server
	@touch $@
