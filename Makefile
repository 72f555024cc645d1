# Every target sets up what it needs from python3, pip and make alone, once.
PYTHON ?= python3
BIN := .venv/bin
DEMO_OUT ?= runs/demo

.PHONY: demo test lint types arrows lock clean

.venv/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c requirements.lock -e '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/mobilefit design fashion-mnist --latency 70% --resolution 32 --minutes 8 --out $(DEMO_OUT)

test: .venv/.installed
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check .

types: .venv/.installed
	$(BIN)/mypy

arrows: .venv/.installed
	$(BIN)/lint-imports

# Resolves for every supported Python at once; needs uv.
lock:
	uv pip compile --universal --python-version 3.10 --extra dev --no-annotate --no-header \
		pyproject.toml -o requirements.lock

clean:
	rm -rf .venv runs
