# Everything runs inside .venv; `make` alone says what there is.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check
# llama.cpp is compiled once, for this machine's processor: never taken from pip's cache, where a wheel may have been
# compiled for another processor or with other options (pip tells neither apart). Without AMX, though: compilers drop
# most of its tile configuration, which is set up in memory that they take for unused, and its first use is an illegal
# instruction (gcc 12 and llama-cpp-python 0.3.36; ggml-org/llama.cpp#26954).
export CFLAGS += -U__AMX_INT8__
export CXXFLAGS += -U__AMX_INT8__
export CMAKE_ARGS ?= -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help install demo test check lint bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/'

$(VENV)/installed: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -e '.[dev,ray,nf4,eval]'
	@echo "compiling llama.cpp, once (4 to 10 minutes on two cores)"
	$(PIP) install --quiet --no-cache-dir -e '.[gguf]'
	touch $@

install: $(VENV)/installed  ## .venv with everything, llama-cpp-python too

demo: install  ## train, search, ship, report: 20 minutes on two cores
	$(RUN) train.py +experiment=llama_like
	$(RUN) search.py run=runs/llama_like budget.size_mb=1.93

lint: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy supernet search train.py benchmarks
	$(VENV)/bin/mypy search.py

# Two workers with one thread each: two busy processes with two threads each crawl. In the order of testpaths, the files
# that take longest first, not those with the most tests.
test: install  ## all tests
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

check: lint  ## formatting, types and the fast tests
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

bench: install  ## the benchmarks that need nothing prepared: about an hour
	$(RUN) benchmarks/train_step.py
	$(RUN) benchmarks/evaluate.py
	$(RUN) benchmarks/memory_plan.py
	$(RUN) benchmarks/llama_1b.py
	$(RUN) benchmarks/wall_clock.py --demo

clean:  ## runs and caches; .venv stays
	rm -rf runs cache multirun outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
