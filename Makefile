# make demo    creates .venv, trains on embedded real data without and with guidance, shows the path of the report
# make test    creates .venv if needed, runs every test that needs no GPU
# make test-kernels    the numerical tests with other processors' kernels
# make lint    ruff and mypy
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
DEMO_DIR ?= runs
# The goals' backbones, the ones bound by launches first; words that their names contain.
GPU_BACKBONES ?= skp patch16 resnet50 convolutions
# E.g. --quick --device cpu, to see that the two runs go through.
GPU_OPTIONS ?=

.PHONY: install demo demo-seeds less-work-seeds skeleton test test-fast test-kernels test-gpu \
	benchmark benchmark-gpu benchmark-gpu-1 benchmark-gpu-2 benchmark-gpu-engines lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --progress-bar off --constraint constraints.txt --editable ".[demo,zero,skeleton-demo,segment,edit,dev]"
	@# The photographs of textures; the package's own dependencies (Jupyter) are not needed to read them.
	$(RUN)/python -m pip install --quiet --progress-bar off --no-deps vpython==7.6.5
	touch $@

demo: install
	$(RUN)/python -m tools.demo --dir $(DEMO_DIR)

demo-seeds: install
	$(RUN)/python -m tools.demo --dir $(DEMO_DIR) --task edits --seeds 60 61 62 63 64 65 66 67 --doc docs/demo.md
	$(RUN)/python -m tools.demo --dir $(DEMO_DIR) --task localisation --seeds 3 4 5 --doc docs/demo.md

# What cheaper guidance does to accuracy, and what it costs.
less-work-seeds: install
	OMP_NUM_THREADS=1 $(RUN)/python -m tools.demo --dir $(DEMO_DIR) --tasks configs/less_work_tasks.yaml --jobs 1 --seeds 3 4 5 \
		--doc docs/benchmarks/README.md

# OpenMMLab on top of the environment: skeletons by HRNet, PoseC3D, ST-GCN. Everything else works without.
skeleton: install
	bash tools/install_openmmlab.sh $(RUN)/python

# One thread per process: the tests run in two processes side by side.
test: install
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 --dist loadfile -m "not gpu"

test-fast: install
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not slow"

# The numerical tests with other processors' kernels, and with two threads: what passes by the rounding of one processor
# fails here. The first variable is of PyTorch's own kernels, the next of oneDNN's (convolutions) and of MKL's (BLAS).
NUMERICAL := $(addprefix tests/,engine evaluation guidance models second_derivatives synthesis test_optim.py test_sample.py)
KERNEL_TESTS := $(RUN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not slow" $(NUMERICAL)

test-kernels: install
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default DNNL_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE $(KERNEL_TESTS)
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 $(KERNEL_TESTS)
	OMP_NUM_THREADS=2 $(KERNEL_TESTS)

test-gpu: install
	$(RUN)/python -m pytest -m gpu

# Every table and picture of docs/benchmarks but those of trained networks (less-work-seeds), on this CPU.
benchmark: install
	OMP_NUM_THREADS=1 $(RUN)/python -m tools.benchmark --quick --parts step roofline --doc docs/benchmarks/README.md
	OMP_NUM_THREADS=1 $(RUN)/python -m tools.benchmark --quick --parts engines --backbones vgg16 deit resnet50 skp \
		--labels hard soft --doc docs/benchmarks/README.md
	OMP_NUM_THREADS=1 $(RUN)/python -m tools.benchmark --quick --parts memory --labels soft --doc docs/benchmarks/README.md
	OMP_NUM_THREADS=1 $(RUN)/python -m tools.benchmark.profile_step --device cpu --batch vgg16=4 deit=16 resnet50=16 \
		--doc docs/benchmarks/README.md
	$(RUN)/python -m tools.benchmark.bf16 --doc docs/benchmarks/README.md
	$(RUN)/python -m tools.benchmark.loader --doc docs/benchmarks/README.md

# The same on a GPU, at Table 8's sizes, in two runs of less than ten minutes each on one GPU, without network once
# `make install` has run; JSON and pictures into docs/benchmarks. What does not fit, or fails, is listed.
benchmark-gpu: test-gpu benchmark-gpu-1 benchmark-gpu-2

# Guided over plain, the floor and the loop by hand, recorded over eager.
benchmark-gpu-1: install
	$(RUN)/python -m tools.benchmark --precision bf16 --channels-last --labels soft hard --parts step \
		--executors eager cuda_graph --backbones $(GPU_BACKBONES) $(GPU_OPTIONS) --minutes 4.5
	$(RUN)/python -m tools.benchmark --precision no --labels soft hard --parts step \
		--executors eager cuda_graph --backbones $(GPU_BACKBONES) $(GPU_OPTIONS) --minutes 4.5

# Compiled steps (most of the time is the compiler's), the machine's roof, where the time goes, memory.
benchmark-gpu-2: install
	$(RUN)/python -m tools.benchmark --precision bf16 --channels-last --labels soft --parts step \
		--executors eager compiled cuda_graph_compiled --backbones $(GPU_BACKBONES) $(GPU_OPTIONS) --minutes 4
	$(RUN)/python -m tools.benchmark --precision bf16 --labels soft --parts roofline \
		--backbones $(GPU_BACKBONES) $(GPU_OPTIONS) --minutes 1
	$(RUN)/python -m tools.benchmark.profile_step --precision bf16 --backbones $(GPU_BACKBONES) $(GPU_OPTIONS) --minutes 1
	$(RUN)/python -m tools.benchmark --precision bf16 --labels soft --parts memory --executors eager \
		--backbones $(GPU_BACKBONES) $(GPU_OPTIONS) --minutes 2

# On a machine with several GPUs: whole optimizer steps under every engine.
benchmark-gpu-engines: install
	$(RUN)/python -m tools.benchmark --precision no bf16 --parts engines

lint: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
