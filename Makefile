# Everything a fresh machine needs: python3 (3.11 or 3.12) and make.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: demo test env dev check clean

# The main job on the built-in catalogue: minutes on two CPU cores.
demo: env
	$(VENV)/bin/python launch/demo.py --output=demo

# The whole suite, but for what is marked slow. Each process compiles its own
# programs and takes 2 GB, so more than four bring little.
test: dev
	$(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4

env: $(VENV)/.env
dev: $(VENV)/.dev

# What CI and the pre-commit hooks check.
check: dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck --external-sources launch/*.sh launch/*.sbatch

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.env: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing, which takes some minutes ..."
	$(PIP) install --quiet --requirement requirements.txt
	$(PIP) install --quiet --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements-dev.txt requirements-ann.txt requirements-gcs.txt \
		requirements-mllm.txt requirements-openai.txt requirements-search.txt \
		$(VENV)/.env
	$(PIP) install --quiet -r requirements-dev.txt -r requirements-ann.txt \
		-r requirements-gcs.txt -r requirements-mllm.txt \
		-r requirements-openai.txt -r requirements-search.txt
	touch $@

clean:
	rm -rf $(VENV) demo
