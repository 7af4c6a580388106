PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: setup demo test quick soak gpu check docs clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt scripts/install_torchsort.sh
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "pretrack needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo 'creating $(VENV) and installing about 7 GB: this takes some minutes'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt pip setuptools wheel
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pipeline,cotracker3,train,demo,scenes,docs,dev]'
	sh scripts/install_torchsort.sh $(RUN)/python
	touch $@

# Real video → shards → pictures → a short training run → its evaluation, on a CPU.
demo: setup
	$(RUN)/python demo.py

# Run all tests. Takes about fourteen minutes on two cores.
test: setup
	$(RUN)/python -m tests

# Kill builds a hundred times at random moments, and read 200 random video files. Takes about half
# an hour.
soak: setup
	$(RUN)/python -m tests.helpers.soak --kills 100
	PRETRACK_FILES=200 $(RUN)/python -m pytest tests/pipeline/decode/test_random_files.py

# Run the tests without the slow ones. Takes about two minutes on two cores.
quick: setup
	$(RUN)/python -m tests -m 'not slow'

# Check and time what runs on a GPU, in less than ten minutes; the figures also go to gpu.json.
gpu: setup
	$(RUN)/python -m benchmarks.gpu --json gpu.json

check: setup
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

# Build the documentation's site into site/; every warning is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
