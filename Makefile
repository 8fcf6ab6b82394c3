# Verbs. Each does its own set-up; needs only Python >= 3.10 and g++.
#   make demo    the main job on the demo checkpoint        make venv    the set-up alone
#   make test    every test that needs no GPU               make build   the compiled libraries
#   make check   format, lint, CPU tests                    make gpu     a GPU run (docs/measuring.md)
#   make kernel K=silu_mul   compile one kernel, print its report
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
OUT ?= build/gpu
BUDGET ?= 540

bin := $(VENV)/bin
# PyPI's nvcc comes last: a toolkit of the machine goes before it.
run = CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) PATH="$(abspath $(bin)):$$PATH$(addprefix :,$(abspath $(wildcard $(VENV)/lib/python*/site-packages/nvidia/cu13/bin)))"
stamp := $(VENV)/.ready
nvcc := $(firstword $(CUDACXX) $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc))

.PHONY: venv build demo test parity check fmt kernel gpu gpu-files size clean

venv: $(stamp)

$(stamp): requirements/dev.txt requirements/nvcc.txt requirements/oracles.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install -q --upgrade pip
	$(bin)/python -m pip install -q -r requirements/dev.txt $(if $(nvcc),,-r requirements/nvcc.txt)
	$(bin)/python -m pip install -q --no-deps --target $(VENV)/oracles -r requirements/oracles.txt
	PYTHONWARNINGS=ignore L4K_BUILD_CUDA=0 $(bin)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

# The library, its twin for the emulator and the host tests, from one CMake configuration.
build: $(stamp)
	$(run) $(bin)/python setup.py -q build_ext --inplace
	$(run) cmake -S . -B build/cmake -DL4K_EMULATOR=ON -DL4K_HOST_TESTS=ON \
	  -DPython_EXECUTABLE="$(abspath $(bin))/python" > build/configure.log
	$(run) cmake --build build/cmake

demo: $(stamp)
	$(bin)/l4k demo

test: build
	$(run) ctest --test-dir build/cmake -j $(JOBS) --output-on-failure
	$(run) $(bin)/python tests/emulator/emulator_programs.py cutlass
	$(run) $(bin)/python -m pytest -n $(JOBS) -m "not gpu"

# 200 random tiny models against transformers (make test runs a sample).
parity: $(stamp)
	$(bin)/python tests/parity.py --cases 200

check: $(stamp)
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(run) $(bin)/python -m pytest -x tests/test_house.py tests/test_ops.py

fmt: $(stamp)
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

kernel: $(stamp)
	$(run) $(bin)/python -m tools.budget $(K)

# On a machine with a Hopper GPU and a library built elsewhere (l4kernels/lib): nothing is compiled
# and nothing is installed, so this uses the python of that machine.
gpu:
	$(PYTHON) -m bench.gpu_suite --out $(OUT) --budget $(BUDGET) $(if $(PLAN),--plan $(if $(filter 1,$(PLAN)),h200,$(PLAN))) $(if $(ONLY),--only $(ONLY))

# What `make gpu` takes along: the library, and the microbenchmarks beside it.
gpu-files: build
	$(run) $(bin)/python -m bench.micro build

size:
	@$(PYTHON) -m tools.size

clean:
	rm -rf build l4kernels/lib
