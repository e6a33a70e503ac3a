# make setup   a virtual environment in .venv with everything installed
# make run     the main job: a study, from text to pre-trained and fine-tuned models compared in a report
# make test    the tests, on up to four cores; `make test SLOW=1` the slow ones, one after another
# make check   formatting, lint, import order of the layers

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
FIRST := runs/first_run
# pip would compile 10,000 files, one after the other. Python compiles those that it imports, and keeps what it compiled.
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup run test check clean

setup: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "t5lite needs Python 3.11 or newer; set PYTHON=python3.x" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(INSTALL) -r requirements-dev.txt
	touch $@

run: $(VENV)/.installed
	$(RUN) -m t5lite.study --config configs/studies/first_run.py --workdir $(FIRST) --parallel 2
	@echo "report: $(FIRST)/report.html"
	@echo "answers: $(RUN) -m t5lite.evaluate --checkpoint $(FIRST)/summary_pretrained-0 --examples 3"

test: setup
	$(RUN) -m pytest $(if $(SLOW),-m slow,--numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder)

check: setup
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pytest tests/test_layers.py

clean:
	rm -rf runs .pytest_cache .ruff_cache
