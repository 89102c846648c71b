# Everything runs in .venv, made on first use. PYTHON picks the interpreter (3.11 or later);
# PYTEST_JOBS the number of test processes; EXTRAS the optional parts that the tests install.
PYTHON ?= python3
PYTEST_JOBS ?= 2
EXTRAS ?= test,torch,webgpu,cuda,zig,tvm,fpga

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt --editable
comma := ,
STAMP_TEST := .venv/installed-$(subst $(comma),-,$(EXTRAS))
PACKAGING := pyproject.toml setup.py constraints.txt

.PHONY: help demo test test-fast test-slow lint bench docs clean

help:
	@echo "make demo    compile and run the digits example"
	@echo "make test    fast tests, then slow ones (GPU tests: pytest -m gpu)"
	@echo "make lint    ruff and pyright"
	@echo "make bench   the digits example next to ONNX Runtime, by the command line"
	@echo "make docs    write the table of operators, check the documentation"

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'smelt needs Python 3.11')"
	$(PYTHON) -m venv .venv

.venv/installed-demo: $(PACKAGING) | $(BIN)/python
	$(INSTALL) ".[verify]"
	@touch $@

$(STAMP_TEST): $(PACKAGING) | $(BIN)/python
	$(INSTALL) ".[$(EXTRAS)]"
	@touch $@

demo: .venv/installed-demo
	$(BIN)/python examples/digits/demo.py

test:
	@$(MAKE) --no-print-directory test-fast
	@$(MAKE) --no-print-directory test-slow

test-fast: $(STAMP_TEST)
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(PYTEST_JOBS)

test-slow: $(STAMP_TEST)
	$(BIN)/python -m pytest -m "slow and not gpu" -n $(PYTEST_JOBS)

lint: $(STAMP_TEST)
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/installed-demo
	$(BIN)/smelt bench examples/digits/digits.onnx

docs: $(STAMP_TEST)
	$(BIN)/python -m smelt.frontend.onnx.coverage > docs/operators.md
	$(BIN)/python -m pytest tests/test_project.py tests/face/test_docs.py -k docs

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
