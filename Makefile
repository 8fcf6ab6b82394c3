# Verbs. Each does its own set-up; demo needs only Python >= 3.10, the others g++ and 3.11 as well.
#   make demo    the main job on the demo checkpoint        make venv    the set-up of all verbs
#   make test    every test that needs no GPU               make build   the compiled libraries
#   make check   format, lint, types, house tests           make gpu     a GPU run (docs/measuring.md)
#   make fmt     formats Python and C++                     make size    lines and density by room
#   make browser-test   the chat page in a headless Chromium
#   make soak    50,000 requests through the engine (make test: 10,000)
#   make sanitize   the emulator's and the host tests under ASan and UBSan
#   make kernel K=silu_mul   compile one kernel, print its report
#   make emulate F=FILE.cu ARGS="--mode all"   run a CUDA program without a GPU (docs/emulating.md)
#   make size SINCE=HEAD     ... and what the working tree adds to a revision
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
OUT ?= build/gpu
BUDGET ?= 540

bin := $(VENV)/bin
# PyPI's nvcc comes last: a toolkit of the machine goes before it.
run = CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) PATH="$(abspath $(bin)):$$PATH$(addprefix :,$(abspath $(wildcard $(VENV)/lib/python*/site-packages/nvidia/cu13/bin)))"
nvcc := $(firstword $(CUDACXX) $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc))

# A Python that was asked for by name must be the environment's.
environment = $(PYTHON) -m tools.environment $(VENV) \
  $(if $(filter-out file,$(origin PYTHON)),--exact) --requirements

.PHONY: venv demo-venv build demo test browser-test soak sanitize parity check check-format check-types check-house fmt kernel emulate \
  gpu gpu-files size clean

venv:
	@$(environment) demo dev oracles $(if $(nvcc),,nvcc)

demo-venv:
	@$(environment) demo

# The library, its twin for the emulator and the host tests.
build: venv
	$(run) $(bin)/python setup.py -q build_ext --inplace --build-temp build/cmake --emulator

demo: demo-venv
	$(bin)/l4k demo

test: build
	$(run) ctest --test-dir build/cmake -j $(JOBS) --output-on-failure
	$(run) $(bin)/python -m tests.emulator.emulator_programs cutlass
	$(run) $(bin)/python -m pytest -n $(JOBS) -m "not gpu and not soak and not browser"

# The chat page, as a user has it, in a headless Chromium.
browser-test: venv
	@for program in chromium chromedriver; do command -v $$program >/dev/null || { \
	  echo "make browser-test: expected $$program on the PATH; on Debian: apt-get install chromium chromium-driver"; exit 2; }; done
	$(bin)/python -m pytest -m browser tests/browser

# No kernel runs: the engine's own part, on a model that is a checksum of its keys.
soak: venv
	$(bin)/python -m pytest -m soak

# The emulator's own tests and the host tests, in a build folder of their own.
sanitize: venv
	$(run) cmake -S . -B build/sanitize -G Ninja -DL4K_SANITIZE=ON
	$(run) cmake --build build/sanitize
	$(run) ctest --test-dir build/sanitize -j $(JOBS) --output-on-failure

# 200 random tiny models against transformers (make test runs a sample).
parity: venv
	$(bin)/python tests/support/parity.py --cases 200

# Quick, and what .pre-commit-config.yaml runs: every check is written here alone.
check: check-format check-types check-house

cpp = find * -path build -prune -o -regex '.*\.\(h\|cuh\|cu\|cpp\)' -print0 | xargs -0

check-format: venv
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(cpp) $(bin)/clang-format --dry-run -Werror

check-types: venv
	$(bin)/mypy

check-house: venv
	$(bin)/python -m pytest -x tests/house/test_house*.py tests/house/test_size.py

fmt: venv
	$(bin)/ruff format .
	$(bin)/ruff check --fix .
	$(cpp) $(bin)/clang-format -i

kernel: venv
	$(run) $(bin)/python -m tools.budget $(K)

# Needs g++, CMake and nvcc, and nothing of Python's packages; `make venv` brings the last two.
emulate:
	@$(run) sh -c 'command -v cmake >/dev/null || { echo "make emulate: expected cmake on the PATH (make venv brings one)"; exit 2; }; \
	  { cmake -S emulator -B build/emulator && cmake --build build/emulator --target l4k_emulator; } >build/emulator.log 2>&1 \
	  || { tail -n 20 build/emulator.log; exit 2; }'
	@$(run) $(PYTHON) -m l4kernels.emulation $(F) $(ARGS)

# On a machine with a Hopper GPU and a library built elsewhere (l4kernels/lib): nothing is compiled
# and nothing is installed, so this uses the python of that machine.
gpu:
	$(PYTHON) -m bench.gpu_suite --out $(OUT) --budget $(BUDGET) $(if $(PLAN),--plan $(if $(filter 1,$(PLAN)),h200,$(PLAN))) $(if $(ONLY),--only $(ONLY))

# What `make gpu` takes along: the library, and beside it the microbenchmarks and the programs of
# conformance with the emulator's results.
gpu-files: build
	$(run) $(bin)/python -m bench.micro build
	$(run) $(bin)/python -m bench.conformance build

size:
	@$(PYTHON) -m tools.size $(SINCE)

clean:
	rm -rf build l4kernels/lib
