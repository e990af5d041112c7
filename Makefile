# A newcomer's two commands: `make demo` and `make test`. Both do their whole set-up.
VENV ?= .venv
PYTHON ?= python3
PY = $(VENV)/bin/python
# What is installed. `EXTRAS=dev,gpu-test` adds triton (a large download): its kernels are then compiled and run in its interpreter, GPU or not.
EXTRAS ?= dev
export OMP_WAIT_POLICY ?= PASSIVE
READY = $(VENV)/.ready-$(EXTRAS)

.PHONY: demo test check bench calibrate claims adapters concepts study parallel screenshot env clean

env: $(READY)

# Again only when what is to be installed changes.
$(READY): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: $(READY)
	$(VENV)/bin/residue models fetch demo
	$(VENV)/bin/residue diagnose --file examples/prompts.jsonl

test: $(READY)
	$(VENV)/bin/residue models fetch demo
	$(PY) -m pytest

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports

bench: $(READY)
	$(VENV)/bin/residue models fetch demo
	$(PY) benchmarks/readout.py --write
	$(PY) benchmarks/native_kernel.py --write
	$(PY) benchmarks/fuzz_attention.py --write
	$(PY) benchmarks/dla.py --write
	$(PY) benchmarks/generation.py --write
	$(PY) benchmarks/parallel_decoding.py --write
	$(PY) benchmarks/concept_heads.py --write
	$(PY) benchmarks/concept_collect.py --write
	$(PY) benchmarks/patching.py --write
	$(PY) benchmarks/contrast_analysis.py --write
	$(PY) benchmarks/generalization_null.py --write
	$(PY) benchmarks/generalization_null.py --demo --write

calibrate: $(READY)
	$(PY) benchmarks/calibrate_value_collapse.py --write
	$(PY) benchmarks/calibration.py --write

claims: $(READY)
	$(PY) benchmarks/claims/run.py --write

# The study's adapters of the demo model, into the package's cache: forty minutes on one core. Those that are there are left as they are.
adapters: $(READY)
	$(VENV)/bin/residue models fetch demo
	$(PY) benchmarks/train_adapters.py

# The study of docs/concepts.md: an hour on one core, most of it steering.
concepts: $(READY)
	$(VENV)/bin/residue models fetch demo
	$(PY) docs/make_concepts.py --pages

# The measurement of docs/parallel.md: half an hour on one core.
parallel: $(READY)
	$(VENV)/bin/residue models fetch demo
	$(PY) docs/make_parallel.py --pages

# The study of docs/contrast-study.md: fifty minutes beside other work.
study: $(READY) adapters
	$(PY) docs/make_study.py --pages

screenshot: $(READY)
	$(PY) docs/make_pictures.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
