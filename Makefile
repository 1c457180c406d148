# Every target sets up what it needs; a second call installs nothing again.
PYTHON ?= python3
PORT ?= 7860
CONFIG ?= train_scripts/configs/dinov2-small.yaml
DATA ?= data
OUTPUT ?= runs/latest
# More flags, such as: make train ARGS="--weights path/to/weights --max_steps 20", make test ARGS=--lf
ARGS ?=
PREVIEW ?= augmentation.png
RANGES ?= train_scripts/configs/search.yaml

# Another environment, such as for another Python: make test PYTHON=python3.13 VENV=.venv-3.13
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check train search audit augment-preview lock clean

help:  ## Say what there is
	@echo "make demo    serve the app on http://127.0.0.1:$(PORT)"
	@echo "make train   DATA=folder OUTPUT=runs/name CONFIG=recipe.yaml ARGS=\"more flags\""
	@echo "make search  DATA=folder OUTPUT=runs/search CONFIG=recipe.yaml RANGES=ranges.yaml"
	@echo "make audit   DATA=folder OUTPUT=eval_reports/audit-name ARGS=\"more flags\""
	@echo "make augment-preview  DATA=folder CONFIG=recipe.yaml PREVIEW=sheet.png"
	@echo "make test    run the quick tests (under 5 minutes)"
	@echo "make test-all  run all tests, also the slow ones"
	@echo "make check   ruff: style and formatting"
	@echo "make lock    write constraints.txt anew from what is installed"
	@echo "make clean   remove .venv, .venv-* and caches (never runs/)"

demo: $(VENV)/run-installed  ## Serve the app with the default model, or with MODEL_ID
	@echo "Starting the app; it will be on http://127.0.0.1:$(PORT)"
	@GRADIO_SERVER_PORT=$(PORT) GRADIO_NUM_PORTS=1 $(BIN)/python app.py

train: $(VENV)/train-installed  ## Fine-tune a model
	@echo "Training with $(CONFIG) on $(DATA) into $(OUTPUT)"
	@$(BIN)/python train_scripts/train.py --config $(CONFIG) --data_dir $(DATA) \
		--output_dir $(OUTPUT) $(ARGS)

search: $(VENV)/train-installed  ## Search the hyper-parameters of a recipe
	@echo "Searching around $(CONFIG) in $(RANGES), on $(DATA), into $(OUTPUT)"
	@$(BIN)/python train_scripts/search.py --config $(CONFIG) --ranges $(RANGES) \
		--data_dir $(DATA) --output_dir $(OUTPUT) --resume $(ARGS)

audit: $(VENV)/train-installed  ## Say what is wrong with a data set
	@echo "Auditing $(DATA)"
	@$(BIN)/python train_scripts/audit_data.py --data_dir $(DATA) --output_dir $(OUTPUT) $(ARGS)

augment-preview: $(VENV)/train-installed  ## Draw what a recipe's augmentation does
	@$(BIN)/python train_scripts/preview_augmentation.py --config $(CONFIG) --data_dir $(DATA) \
		--output $(PREVIEW) $(ARGS)

# Processes that tests start load compiled modules, whatever the caller's environment says.
test test-all: export PYTHONDONTWRITEBYTECODE =
test test-all: export OMP_NUM_THREADS = 1

test: $(VENV)/dev-installed  ## Run the quick tests
	@echo "Running the quick tests"
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/dev-installed  ## Run all tests
	@echo "Running all tests"
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/dev-installed  ## Check style and formatting
	@echo "Checking style with ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12"; exit 2; }
	@echo "Making the environment $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 2; }
	@touch $@

$(VENV)/run-installed: requirements.txt constraints.txt pyproject.toml | $(VENV)/created
	@echo "Installing requirements.txt (PyTorch is large: some minutes, once)"
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/train-installed: requirements-train.txt $(VENV)/run-installed
	@echo "Installing requirements-train.txt"
	@$(PIP) -r requirements-train.txt
	@touch $@

$(VENV)/dev-installed: requirements-dev.txt $(VENV)/train-installed
	@echo "Installing requirements-dev.txt"
	@$(PIP) -r requirements-dev.txt
	@touch $@

lock: $(VENV)/dev-installed
	@{ echo "# What the direct dependencies bring along, as tested. Made by 'make lock'."; \
		$(BIN)/python -m pip freeze --exclude pip --exclude setuptools; } > constraints.txt
	@echo "Wrote constraints.txt"

clean:
	rm -rf .venv .venv-* .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -exec rm -rf {} +
