# make setup   a virtual environment in .venv with everything installed
# make run     the main job: from text to a pre-trained, fine-tuned, evaluated, generating model
# make test    the tests; `make test SLOW=1` the slow ones
# make check   formatting, lint, import order of the layers

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
FIRST := runs/first_run

.PHONY: setup run test check clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "t5lite needs Python 3.11 or newer; set PYTHON=python3.x" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
	touch $@

run: setup
	$(RUN) -m t5lite.train --config configs/first_run.py --workdir $(FIRST)/pretrain
	$(RUN) -m t5lite.train --config configs/first_run.py:stage=finetune --config.init_from=$(FIRST)/pretrain --workdir $(FIRST)/task
	$(RUN) -m t5lite.evaluate --checkpoint $(FIRST)/pretrain --examples 3
	$(RUN) -m t5lite.evaluate --checkpoint $(FIRST)/task --examples 3

test: setup
	$(RUN) -m pytest $(if $(SLOW),-m slow)

check: setup
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pytest tests/test_layers.py

clean:
	rm -rf runs .pytest_cache .ruff_cache
