# `make demo` and `make test` need a machine with Python 3.11 or newer, and nothing else.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check -c constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_TRANSFORMERS := $(VENV)/.installed-transformers
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install dev demo sentences translation symbols transcription test lint quick nightly bench clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv and install everything that a run needs

dev: $(INSTALLED_DEV)  ## the same, and what lint, types and tests need

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: no .venv was made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }

$(INSTALLED): pyproject.toml constraints.txt | $(PY)
	$(PIP) -e .
	@$(MAKE) --no-print-directory .check-opencv
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(PY)
	$(PIP) -e '.[dev]'
	@$(MAKE) --no-print-directory .check-opencv
	@touch $(INSTALLED) $@

$(INSTALLED_TRANSFORMERS): $(INSTALLED)
	$(PIP) -e '.[transcription]'
	@touch $@

.PHONY: .check-opencv
.check-opencv:
	@$(PY) -c 'import cv2' || \
	  { echo "error: OpenCV cannot be imported; on Debian and Ubuntu: apt-get install libgl1" >&2; exit 2; }

# With -r a finished run is only tested again, an interrupted one goes on, and where there is none a new one starts.
demo: $(INSTALLED)  ## draw the built-in clips, train S3D on them on the CPU, test it: report and pictures
	$(PY) code/preprocess.py -as demo
	$(PY) code/training.py S3D demo 1 -r -na --no_wandb --device cpu
	$(PY) code/testing.py full S3D demo 1 --device cpu
	@$(PY) -c 'from slr import paths; run = paths.Experiment("S3D", "demo", "1").run; \
	  labels = paths.labels(paths.data_root(), "demo"); \
	  print("report:  ", paths.shown(run / "results" / "best_val_loss.json")); \
	  print("pictures:", *(paths.shown(p) for p in [*sorted(run.glob("results/*.png")), \
	                       *sorted(labels.glob("*.png"))]), sep="\n  ")'

# What `S3D demo 1` has learned is where the sentences' model starts.
sentences: demo  ## then the same for sentences: draw them, train S3D_CTC, test it
	$(PY) code/preprocess.py -as demo_continuous
	$(PY) code/training.py S3D_CTC demo_continuous 1 -r -na --no_wandb --device cpu
	$(PY) code/testing.py full S3D_CTC demo_continuous 1 --device cpu

translation: sentences  ## then what they mean: draw sentences with an English side, train and test the whole chain
	$(PY) code/preprocess.py -as demo_translation
	$(PY) code/training.py S3D_CTC demo_translation 1 -r -na --no_wandb --device cpu
	$(PY) code/testing.py full S3D_CTC demo_translation 1 --device cpu
	$(PY) code/training.py Gloss2Text demo_translation 1 -r -na --no_wandb --device cpu
	$(PY) code/testing.py full Gloss2Text demo_translation 1 --device cpu
	$(PY) code/extract_features.py S3D_CTC demo_translation 1 --device cpu
	$(PY) code/training.py Sign2Text demo_translation 1 -r -na --no_wandb --device cpu
	$(PY) code/testing.py full Sign2Text demo_translation 1 --device cpu

symbols: $(INSTALLED)  ## draw signs with HamNoSys symbols and landmarks, train their heads on the landmarks, test them
	$(PY) code/preprocess.py -as demo_multihead
	$(PY) code/training.py SignTransformer demo_multihead 1 -r -na --no_wandb --device cpu
	$(PY) code/testing.py full SignTransformer demo_multihead 1 --device cpu

# Sentences and videos of its own: it needs nothing of the demos above.
transcription: $(INSTALLED_TRANSFORMERS)  ## draw sentences and videos, pre-train on them without labels, transcribe, test with and without
	$(PY) code/preprocess.py -as demo_continuous
	$(PY) code/preprocess.py -as demo_bundestag
	$(PY) code/training.py SpatioTemporalPretrain demo_bundestag 1 -r -na --no_wandb --device cpu
	$(PY) code/training.py SpatioTemporalPretrain demo_continuous 1 -r -na --no_wandb --device cpu
	$(PY) code/training.py LanguageDecoder demo_continuous 1 -r -na --no_wandb --device cpu
	$(PY) code/training.py SpatioTemporal demo_continuous 1 -r -na --no_wandb --device cpu
	$(PY) code/training.py SpatioTemporal demo_continuous 2 -r -na --no_wandb --device cpu
	$(PY) code/testing.py full SpatioTemporal demo_continuous 1 --device cpu
	$(PY) code/testing.py full SpatioTemporal demo_continuous 2 --device cpu
	$(PY) code/testing.py compare SpatioTemporal/demo_continuous/1 SpatioTemporal/demo_continuous/2

lint: $(INSTALLED_DEV)  ## style and types
	$(PY) -m ruff check code que
	$(PY) -m mypy

test: lint  ## style, types and every test: what has to pass before anything is merged
	$(PYTEST)

quick: lint  ## the same without the slow tests
	$(PYTEST) -m "not slow"

# In folders of its own, so that it is the whole way every time and touches nobody's run.
nightly: test  ## every test, the whole demo from nothing, and the benchmarks
	rm -rf build/nightly
	SLR_DATA=build/nightly/data SLR_RUNS=build/nightly/runs $(MAKE) demo
	if command -v slurmctld >/dev/null; then QUE_TEST_SLURM=1 $(PY) -m pytest code/tests/test_que_slurm.py -k real; fi
	$(MAKE) bench

bench: $(INSTALLED_TRANSFORMERS)  ## the benchmarks of loader, training step, scan, transcription and que
	$(PY) code/benchmarks/loader.py
	$(PY) code/benchmarks/train_step.py
	$(PY) code/benchmarks/scan.py
	$(PY) code/benchmarks/transcription.py
	$(PY) code/benchmarks/que_latency.py

clean:  ## remove caches and build leftovers; data/ and runs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis code/.hypothesis code/*.egg-info *.egg-info
	find code que -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## and .venv
	rm -rf $(VENV)
