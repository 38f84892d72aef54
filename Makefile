# `make demo` and `make test` are all that a newcomer needs; both set themselves up first.
PY    ?= python3
BIN   := .venv/bin
DISTS := . $(wildcard plugins/*)
META  := pyproject.toml $(wildcard plugins/*/pyproject.toml)
CODE  := src plugins tests benchmarks examples

.PHONY: demo test check bench bench-peers setup htp test-floors wheels

demo: setup
	$(BIN)/python examples/digits/demo.py

test: check htp
	$(BIN)/python -m pytest -q -n auto

# Qualcomm's HTP library, on which the files for DSP are run. It has a licence of its own, and exists
# for few systems.
HTP := onnxruntime-qnn==2.7.0
htp: setup
	@$(BIN)/python -c "import onnxruntime_qnn" 2> /dev/null \
	|| { test "$$(uname -sm)" = "Linux x86_64" \
	     && $(BIN)/python -m pip install -q --no-deps --only-binary :all: --retries 1 $(HTP); } \
	|| echo "$(HTP) cannot be installed here: the tests that run files for DSP are skipped"

check: setup
	$(BIN)/ruff check -q $(CODE)
	$(BIN)/ruff format -q --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: setup
	$(BIN)/python -m benchmarks

# Against other tools, each in an environment of its own; half an hour.
bench-peers: setup
	$(BIN)/python -m benchmarks peers

# The oldest versions of everything, in an environment of its own.
test-floors:
	test -x .venv-floors/bin/python || $(PY) -m venv --without-pip .venv-floors
	$(PY) -m pip --python .venv-floors/bin/python install -q "pip>=25.1"
	.venv-floors/bin/python -m pip install -q -c constraints/floors.txt $(addprefix -e ,$(DISTS)) --group dev
	.venv-floors/bin/python -m pytest -q -n auto -W ignore  # old libraries warn of each other

wheels: setup
	for dist in $(DISTS); do $(BIN)/python -m pip wheel -q --no-deps -w dist $$dist; done

setup: .venv/.stamp
.venv/.stamp: $(META)
	test -x $(BIN)/python || $(PY) -m venv --without-pip .venv
	$(PY) -m pip --python $(BIN)/python install -q "pip>=25.1"
	$(BIN)/python -m pip install -q $(addprefix -e ,$(DISTS)) --group dev
	touch $@
