# Two commands do everything: `make quickstart` and `make test`. Each makes .venv first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := --constraint constraints.txt --editable '.[test]'
UV := $(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python

# or each of a study's processes would compile all of this project anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test fast lint clean

quickstart: $(STAMP)
	$(BIN)/orchestrator quickstart

test: $(STAMP)
	# lint takes one core; on another one pytest compiles what it imports: a third of all there is
	$(BIN)/python -m pytest --collect-only -qq > /dev/null 2>&1 & \
	    $(MAKE) --no-print-directory lint; code=$$?; wait; exit $$code
	$(MAKE) --no-print-directory fast
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

fast: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# uv takes half of pip's time, but knows nothing of pip's settings: pip installs where they name an
# index, and where uv cannot be had or fails.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed; say PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	{ ! $(BIN)/python -m pip config list | grep -q '[.]\(no-\)\?index' \
	    && $(BIN)/python -m pip install --quiet --constraint constraints.txt uv && $(UV) $(PACKAGES); } \
	    || $(BIN)/python -m pip install --quiet $(PACKAGES)
	touch $@

clean:
	rm -rf $(VENV)
