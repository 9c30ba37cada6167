# Each target sets up what it needs: a virtual environment in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SAMPLES := sample_checkpoints
COUNT ?= 20000

.PHONY: demo test lint bench fuzz readme samples smoke clean

demo: $(VENV)/installed  ## show what bncheck does, on the samples
	@$(BIN)/bncheck drift $(SAMPLES)/saved-in-train-mode.pt --data $(SAMPLES)/digits --trust-pickle || test $$? -eq 1
	@echo
	@$(BIN)/bncheck inspect $(SAMPLES)/non-finite-statistics.pt || test $$? -eq 1
	@echo
	@$(BIN)/bncheck inspect --quiet $(SAMPLES) || test $$? -eq 1

test: $(VENV)/installed-dev  ## all tests, the slow ones too
	$(BIN)/python tools/real_checkpoints.py
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/installed-dev  ## style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev  ## speed and memory, as ratios within one run
	$(BIN)/python tools/benchmarks/inspect_files.py
	$(PIP) install -q fvcore==0.1.5.post20221221 || true  # its column is left out without it
	$(BIN)/python tools/benchmarks/statistics_pass.py

fuzz: $(VENV)/installed-dev  ## mutate files of every format and read them; COUNT=1000000 for a long turn
	$(BIN)/python tools/fuzz/fuzz_readers.py --count $(COUNT) --seed 1
	if $(PIP) install -q -c constraints.txt atheris; then $(BIN)/python tools/fuzz/guided.py -runs=$(COUNT); fi

readme: $(VENV)/installed-dev  ## write the outputs and tables of the README anew
	$(BIN)/python tools/readme.py

samples: $(VENV)/installed-dev  ## train the samples anew
	$(BIN)/python $(SAMPLES)/make.py

smoke: $(VENV)/installed-dev  ## the built wheel, alone in an environment of its own
	rm -rf build/smoke
	$(PIP) wheel -q --no-deps -w build/smoke/wheel .
	$(PYTHON) -m venv build/smoke/venv
	build/smoke/venv/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt build/smoke/wheel/*.whl
	cd build/smoke && venv/bin/bncheck inspect ../../$(SAMPLES)/healthy.pt ../../$(SAMPLES)/healthy.safetensors
	cd build/smoke && venv/bin/python -m bncheck explain momentum > /dev/null
	rm -rf build/smoke

$(VENV)/python-made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/python-made pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/python-made pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e ".[dev,onnx]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist
