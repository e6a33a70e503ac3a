# make setup   a virtual environment in .venv with everything installed; Python compiles what is used when it is used,
#              which takes half of the time of compiling all of it
# make run     the main job: a study, from text to pre-trained and fine-tuned models compared in a report
# make test    the tests, on up to four cores; `make test SLOW=1` the slow ones, one after another
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
	$(RUN) -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
	touch $@

run: setup
	$(RUN) -m t5lite.study --config configs/studies/first_run.py --workdir $(FIRST) --parallel 2
	$(RUN) -m t5lite.evaluate --checkpoint $(FIRST)/pretrain --examples 3
	$(RUN) -m t5lite.evaluate --checkpoint $(FIRST)/summary_pretrained-0 --examples 3
	@echo "report: $(FIRST)/report.html"

test: setup
	$(RUN) -m pytest $(if $(SLOW),-m slow,--numprocesses logical --maxprocesses 4 --dist loadfile)

check: setup
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pytest tests/test_layers.py

clean:
	rm -rf runs .pytest_cache .ruff_cache
