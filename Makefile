# `make` lists the targets. Needs Python 3.11, git and make; everything else is installed into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
RUNTIME := $(VENV)/runtime.stamp
DEVELOP := $(VENV)/develop.stamp
FIELDS ?=
DATA ?=
STUDIES ?=
ARGS ?=
LABEL := .venv-label
DEPLOY := .venv-deploy
EXTRAS := .venv-extras

.DEFAULT_GOAL := help
.PHONY: help install demo test lint evaluate train export label deploy test-label test-integrations test-extras clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-26s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(PY):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "Python 3.11 is needed, got $$("$(PYTHON)" --version 2>&1). Set PYTHON=/path/to/python3.11."; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# A stamp is written only when pip ended well, so a broken installation is repeated and a good one is not.
$(RUNTIME): requirements.txt pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(DEVELOP): requirements-dev.txt $(RUNTIME)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

install: $(RUNTIME)  ## build .venv with what requirements.txt pins

demo: $(RUNTIME)  ## restore scikit-image's colon section; writes demo/report.html and demo/*.png
	$(PY) scripts/demo.py $(ARGS)

test: $(DEVELOP)  ## run the tests (ARGS="-k optics" for some of them, ARGS="-m slow" for the slow ones)
	$(PY) -m pytest $(ARGS)

lint: $(DEVELOP)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy bundle

evaluate: $(RUNTIME)  ## FIELDS=folder of sharp fields or dataset; writes evaluation/
	@test -n "$(FIELDS)" || { echo "FIELDS must name a folder of sharp fields: make evaluate FIELDS=folder"; exit 1; }
	$(PY) -m monai.bundle run evaluating --config_file configs/evaluate.json --dataset_dir "$(FIELDS)" --output_dir evaluation $(ARGS)

train: $(RUNTIME)  ## DATA=folder of sharp fields; trains the compact weights, resumes where it stopped
	@test -n "$(DATA)" || { echo "DATA must name a folder of sharp fields: make train DATA=folder"; exit 1; }
	$(PY) scripts/train_compact.py --data "$(DATA)" $(ARGS)

export: $(RUNTIME)  ## write models/model.ts, the chain as TorchScript (ARGS="--seed 3"); other formats: docs/exports.md
	$(PY) -m bundle.cli export --output models/model.ts --overwrite $(ARGS)

# MONAI Label and MONAI Deploy ask for packages of their own: each lives in an environment of its own.
$(LABEL)/ready.stamp: integrations/monailabel/requirements.txt integrations/monailabel/server.txt
	"$(PYTHON)" -m venv $(LABEL)
	$(LABEL)/bin/python -m pip install --quiet --disable-pip-version-check -r integrations/monailabel/requirements.txt
	$(LABEL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r integrations/monailabel/server.txt
	@touch $@

$(DEPLOY)/ready.stamp: integrations/deploy/requirements.txt
	"$(PYTHON)" -m venv $(DEPLOY)
	$(DEPLOY)/bin/python -m pip install --quiet --disable-pip-version-check -r integrations/deploy/requirements.txt
	@touch $@

label: $(LABEL)/ready.stamp  ## STUDIES=folder of images; serves restoration by MONAI Label at http://127.0.0.1:8000
	@test -n "$(STUDIES)" || { echo "STUDIES must name a folder of images: make label STUDIES=folder"; exit 1; }
	PYTHONPATH="$(CURDIR)" $(LABEL)/bin/python -m monailabel.main start_server --app "$(CURDIR)/integrations/monailabel" \
		--studies "$(STUDIES)" --host 127.0.0.1 --port 8000 $(ARGS)

deploy: $(DEPLOY)/ready.stamp  ## build .venv-deploy for integrations/deploy/app.py
	@echo "$(DEPLOY)/bin/python integrations/deploy/app.py -i IMAGE -o FOLDER"

test-label: $(DEVELOP) $(LABEL)/ready.stamp  ## MONAI Label's real server, asked over HTTP
	$(PY) -m pytest tests/integrations/test_monailabel.py -m slow $(ARGS)

test-integrations: $(DEVELOP) $(LABEL)/ready.stamp $(DEPLOY)/ready.stamp  ## MONAI Label, MONAI Deploy and MLflow, each by its own program
	$(PY) -m pytest tests/integrations tests/exporting/test_mlflow_model.py -m "slow or not slow" $(ARGS)

$(EXTRAS)/ready.stamp: requirements.txt requirements-dev.txt requirements-ray.txt requirements-extras.txt
	"$(PYTHON)" -m venv $(EXTRAS)
	$(EXTRAS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt \
		-r requirements-ray.txt -r requirements-extras.txt
	@touch $@

test-extras: $(EXTRAS)/ready.stamp  ## what optional packages do: foundation encoders, networks of table 1, Ray
	$(EXTRAS)/bin/python -m pytest tests/prompts/test_foundation.py tests/reproduction tests/test_ray_engine.py \
		-m "slow or not slow" $(ARGS)

clean:  ## remove what make wrote, keep the weights
	rm -rf $(VENV) $(LABEL) $(DEPLOY) $(EXTRAS) demo evaluation .pytest_cache .mypy_cache .ruff_cache
