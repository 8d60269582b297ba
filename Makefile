# Every target installs what it needs into .venv; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Where it is set, each of the many processes of a test compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE

MACHINES := $(addprefix tests/,cluster/test_slurm.py faults/test_autoscaling.py faults/test_two_drivers.py)

.DEFAULT_GOAL := help
.PHONY: help quickstart own cluster test test-fast test-long test-faults test-machines test-image bench gpu gpu-study gpu-smoke gpu-wheels check docs format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: .venv/.run ## train cross-entropy, logit adjustment and BCL on real long-tailed digits, and compare
	@bash quickstart.sh

own: .venv/.timm ## IMAGES=FOLDER of yours: shards, a fine-tuned model, a report, labels
	@IMAGES="$(IMAGES)" NEW="$(NEW)" WEIGHTS="$(WEIGHTS)" OPTIONS="$(OPTIONS)" bash own.sh

cluster: .venv/.local ## a whole cluster on this machine: Ray, S3, MLflow
	@bcl-ray cluster up --workers 3

test: .venv/.dev ## all tests but the long ones and the drills
	$(BIN)/pytest -n 2 -m "not long" --ignore tests/faults --ignore tests/cluster/test_slurm.py

test-fast: .venv/.dev ## those that start neither Ray nor servers, and take no time
	$(BIN)/pytest -n 2 -m "not (slow or long or ray or server)" --ignore tests/faults --ignore tests/cluster/test_slurm.py

test-long: .venv/.dev ## whole trainings: with other numbers of workers, interrupted, against a plain loop
	$(BIN)/pytest -n 2 $(PYTEST) -m long --ignore tests/faults --ignore tests/cluster/test_slurm.py

test-faults: .venv/.dev ## drills: machines killed, servers stopped, disks filled under a training
	$(BIN)/pytest -n 2 $(PYTEST) tests/faults $(MACHINES:%=--ignore %)

test-machines: .venv/.dev ## a real Slurm (root), Ray's real autoscaler, two drivers of one run
	$(BIN)/pytest -n 2 $(PYTEST) $(MACHINES)

test-image: ## build the image, and use it as a stranger with a read-only root does; root, much disk
	@bash tests/cluster/image.sh

bench: .venv/.dev ## every measured claim, as tables with ratios
	@for name in loss views launches plan shard stream supply epoch geometry checkpoint evaluation; do $(BIN)/python -m benchmarks.$$name || exit 1; done

gpu: ## on a machine with a GPU: tests, speed, a training; 9 minutes; DATA, OUT, WHEELS: benchmarks/README.md
	@$(PYTHON) -m benchmarks.gpu --data "$(DATA)" --wheels "$(WHEELS)" --out "$(or $(OUT),gpu-results)"

gpu-study: ## on a machine with a GPU: CIFAR-100-LT by three methods, seeds side by side; 14 minutes; as `make gpu`
	@$(PYTHON) -m benchmarks.gpu --only machine images study --seconds 840 --data "$(DATA)" --wheels "$(WHEELS)" --out "$(or $(OUT),gpu-study)"

gpu-smoke: ## the same script on the CPU, with tiny sizes
	@$(PYTHON) -m benchmarks.gpu --smoke --wheels "$(WHEELS)" --out "$(or $(OUT),gpu-results)"

# For Python 3.12 on x86-64. RAY=1: with Ray, for the training through Ray Train.
gpu-wheels: ## download what `make gpu` may miss into gpu-wheels/, for a machine without network
	@rm -rf gpu-wheels  # two versions of one package would not install
	@$(PYTHON) -m pip download -q --disable-pip-version-check -c constraints.txt -d gpu-wheels \
	  --only-binary=:all: --python-version 3.12 --implementation cp \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  -r benchmarks/gpu/wheels.txt $(if $(RAY),-r benchmarks/gpu/wheels-ray.txt)
	@rm -f gpu-wheels/numpy-*.whl  # it is there

check: .venv/.dev ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: .venv/.dev ## the pages of docs/ as a site, in build/site; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/.dev ## format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; data and runs stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/.made:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.run: .venv/.made pyproject.toml constraints.txt
	@echo "installing into .venv: about 3 minutes and 6 GB, most of it PyTorch"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[train]'
	@touch $@

.venv/.timm: .venv/.run
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[timm]'
	@touch $@

.venv/.local: .venv/.run
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[local]'
	@touch $@

.venv/.dev: .venv/.run
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
