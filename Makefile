# make demo · make test · make bench: each sets up a virtual environment, builds, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Pinned: an unpinned torch takes several GB of CUDA packages.
TORCH := torch==2.13.0
SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml
CXX_FILES := $(shell find csrc -name '*.cc' -o -name '*.h')
export PATH := $(BIN):$(PATH)

.PHONY: install demo test lint test-cpp test-python test-neon test-ort-matrix bench format clean

install: $(VENV)/installed

$(VENV)/tools: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --upgrade pip
	pip install --quiet $(TORCH)
	pip install --quiet "setuptools>=77" wheel "pybind11>=3.0" "cmake>=3.24" ninja
	touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	pip install --quiet --no-build-isolation --editable .[dev]
	touch $@

# Trains both heads on real data, then times them; writes demo-out/.
demo: install
	python -m bench.demo

test: lint test-cpp test-python

lint: install
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(CXX_FILES)

format: install
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

# The kernels, and the operator library in a C++ host of ONNX Runtime, under AddressSanitizer and
# UndefinedBehaviorSanitizer.
CPP_OPTIONS := -G Ninja -DFIXCLF_TORCH=OFF -DFIXCLF_NUMPY=OFF -DFIXCLF_TESTS=ON
test-cpp: install
	cmake -S . -B build/asan $(CPP_OPTIONS) -DFIXCLF_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug \
	  -DPython_EXECUTABLE=$(BIN)/python
	cmake --build build/asan -j2
	ctest --test-dir build/asan --verbose

test-python: install
	pytest

# Cross-compiled for AArch64 and run under qemu; needs g++-aarch64-linux-gnu and qemu-user.
test-neon: install
	cmake -S . -B build/neon $(CPP_OPTIONS) -DFIXCLF_ONNXRUNTIME=OFF -DCMAKE_SYSTEM_NAME=Linux \
	  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
	cmake --build build/neon -j2
	ctest --test-dir build/neon --verbose

# The operator library in each ONNX Runtime that it claims, in environments of their own in build/.
test-ort-matrix: install
	python tests/ort_matrix.py

# The figures of README.md and docs/performance.md.
bench: install
	python -m bench.report
	python -m bench.reductions
	python -m bench.ort

clean:
	rm -rf build dist demo-out *.egg-info fixclf_infer/*.so
