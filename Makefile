# Two commands are all a newcomer needs: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: setup demo test check bench compat clean

setup: .venv/ready

# torch and torchvision are resolved together with everything else, so that they match.
.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or say make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

demo: setup
	@rm -rf demo
	$(BIN)/erasers erase moon --out demo/eraser
	$(BIN)/erasers grid --eraser demo/eraser --out demo/grid.png
	$(BIN)/erasers evaluate --eraser demo/eraser --out demo/scores.json
	@echo
	@echo "Open demo/grid.png first: left the original, right the same prompts and seeds without the moon."
	@echo "Then demo/scores.json (the figures above, with intervals) and demo/eraser/README.md (how to load the file)."
	@echo "Next: notebooks/01_erase_a_concept.ipynb, or $(BIN)/erasers erase star --out my-eraser"

# One thread for each process: two processes with two threads each would wait for one another.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal --durations 40

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/typecheck.py

bench: setup
	$(BIN)/python bench/uce_speed.py

# What plain diffusers makes of the golden erasers, with release 0.34 and with the newest (docs/compatibility.md).
# TORCH_OF=.venv/bin/python links the torch that is there and downloads none.
compat:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or say make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) tests/compat.py $(if $(TORCH_OF),--torch-of $(TORCH_OF))

clean:
	rm -rf .venv .compat demo build *.egg-info
