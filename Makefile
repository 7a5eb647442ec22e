# make demo and make test do all of their own set-up: nothing but Python >= 3.11 is needed.
# On Linux the torch of the package index brings CUDA libraries of several GB; for the CPU
# build: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := build/clients
CLIENT_LISTS := tests/runtime/serving/clients
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv clients demo test coverage lint typecheck format clean

help:
	@echo "make demo       set up, then answer a question about a picture with 10 % of its tokens"
	@echo "make test       set up, then lint, type check and all tests"
	@echo "make coverage   all tests, and which lines they run"
	@echo "make lint       ruff, mypy and pyright only"
	@echo "make format     let ruff mend what it can"
	@echo "make clients    install the clients that the server is tested with (PyPI, npm)"
	@echo "make venv       set up .venv only (PYTHON=python3.12 chooses the interpreter)"
	@echo "make clean      remove everything that was generated"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "Python >= 3.11 is needed to export; $(PYTHON) is %d.%d. Try: make $(MAKECMDGOALS) PYTHON=python3.12" \
	  % sys.version_info[:2])'
	@echo "Setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export,cpu,serve,batch,dev]'
	@touch $@

# Clients that no one here wrote, apart from our own versions; tests without them are skipped.
clients:
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --requirement $(CLIENT_LISTS)/requirements.txt
	cp $(CLIENT_LISTS)/package.json $(CLIENTS)/
	npm install --silent --no-audit --no-fund --prefix $(CLIENTS)

demo: $(STAMP)
	@$(BIN)/python demo/demo.py

test: lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -n auto --dist loadfile --no-loadscope-reorder

coverage: $(STAMP)
	$(BIN)/python -m pytest --cov -n auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory typecheck

typecheck: $(STAMP)
	$(BIN)/mypy
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
