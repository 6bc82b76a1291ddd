# Two commands need nothing but Python: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test quick check chaos bench bench-claim bench-data gpu recipes results transfer

setup: $(VENV)/developer

# The package alone, which is all that the demo needs.
$(VENV)/user: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# And what the tests compare it with.
$(VENV)/developer: $(VENV)/user
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/user
	$(BIN)/mae demo

test: check
	$(BIN)/python -m pytest --numprocesses 2

quick: setup
	$(BIN)/python -m pytest --numprocesses 2 -m "not slow"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py tests/test_names.py

# The fault tests of docs/reliability.md; started again, it continues where it was.
chaos: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos

# The processor and its products, then both benchmarks of the step, each of which repeats them.
bench: setup
	$(BIN)/python -m benchmarks.demo_step
	$(BIN)/python -m benchmarks.step --json runs/step.json

# The paper's 3x: an encoder that meets the mask tokens against one of visible patches alone.
bench-claim: setup
	$(BIN)/python -m benchmarks.claim --json runs/claim.json

# The table of the recipe `folder`, about 5 hours on two cores; started again, it continues.
recipes: setup
	$(BIN)/python -m benchmarks.recipes runs/recipes

# Segmentation with few masks: MAE, supervised pre-training, scratch; continues as well. With
# BOXES=FOLDER detection too, on images with boxes in train, val and test.
transfer: setup
	$(BIN)/python -m benchmarks.transfer runs/transfer
	$(if $(BOXES),$(BIN)/python -m benchmarks.transfer_boxes runs/boxes $(BOXES))

results: setup
	$(BIN)/python -m benchmarks.results

# Tests and benchmark on this machine's GPU, and docs/gpu-DATE.md; without one it says so.
gpu: setup
	$(BIN)/python -m benchmarks.gpu --tests --json runs/gpu.json

bench-data: setup
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.data --workers
