# Every target sets itself up: a virtual environment in .venv with what the target needs and no
# more (an extra of pyproject.toml), made once for each pyproject.toml.
MODEL ?= demo
TARGET ?= cpu
QUANT ?= int4
MIN_RUNTIME ?=
NAME = $(notdir $(patsubst %/,%,$(MODEL)))
comma = ,
OUT ?= build/$(NAME)-$(subst $(comma),+,$(TARGET))-$(QUANT)$(addprefix -,$(MIN_RUNTIME))
CALIBRATE ?=
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
EXPORT = $(VENV)/.export
EVAL = $(VENV)/.eval
SERVE = $(VENV)/.serve
DEV = $(VENV)/.dev
ROOMS = export graph_passes runtimes evaluation tuning mobile assistant
SOURCES = $(shell find $(ROOMS) gptoss_onnx -name '*.py')

JS = runtimes/javascript

.PHONY: export test test-fast test-js test-arm64 test-cuda npm-package chat chat-node chat-web serve bench lint verify eval clean

export: $(OUT)/manifest.json

# A package is made again when the code, the recipe or a local checkpoint is newer than it.
$(OUT)/manifest.json: $(EXPORT) $(SOURCES) $(wildcard $(MODEL)/*.safetensors $(MODEL)/*.json)
	$(BIN)/gptoss export $(MODEL) --target $(TARGET) --quant $(QUANT) \
		$(if $(MIN_RUNTIME),--min-runtime $(MIN_RUNTIME)) \
		$(if $(CALIBRATE),--calibrate $(CALIBRATE)) --output $(OUT) --force

chat: export
	$(if $(filter node web,$(TARGET)),$(MAKE) chat-$(TARGET),$(BIN)/gptoss chat $(OUT))

chat-node: export $(JS)/dist/node.js
	cd $(JS) && node examples/node.mjs $(abspath $(OUT))

# Prints the page's address.
chat-web: export $(JS)/dist/node.js
	mkdir -p $(JS)/examples/vite/public
	ln -sfn $(abspath $(OUT)) $(JS)/examples/vite/public/package
	cd $(JS)/examples/vite && npx vite

# An OpenAI-compatible server at http://127.0.0.1:8080/v1.
serve: $(SERVE) export
	$(BIN)/gptoss serve $(OUT)

bench: export
	$(BIN)/gptoss bench $(OUT)

verify: export
	$(BIN)/gptoss verify $(OUT) --against $(MODEL)

eval: $(EVAL) export
	$(BIN)/gptoss eval $(OUT) --against $(MODEL) --report $(OUT)-report

# Work in progress: under three minutes on two cores.
test-fast: $(DEV)
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist loadfile
	@if command -v npm >/dev/null; then $(MAKE) test-js; else echo "no Node here: test-js is left out"; fi

# The JavaScript runtime, on the demo's packages for Python, for Node and for browsers.
test-js: $(JS)/node_modules/.package-lock.json
	$(MAKE) export MODEL=demo TARGET=cpu QUANT=int4 OUT=build/demo-cpu-int4
	$(MAKE) export MODEL=demo TARGET=node QUANT=int4 OUT=build/demo-node-int4
	$(MAKE) export MODEL=demo TARGET=web QUANT=int4 OUT=build/demo-web-int4
	cd $(JS) && npm run --silent build && npm run --silent typecheck && npm test --silent

# The JavaScript runtime as npm installs it, build/gptoss-onnx-<version>.tgz.
npm-package: $(JS)/dist/node.js
	mkdir -p build
	npm pack --silent --pack-destination build ./$(JS)

$(JS)/dist/node.js: $(JS)/node_modules/.package-lock.json $(wildcard $(JS)/src/*.ts)
	cd $(JS) && npm run --silent build

$(JS)/node_modules/.package-lock.json: $(JS)/package-lock.json
	cd $(JS) && npm ci
	touch $@

# The CPU's packages on arm64, under qemu: ten minutes or more, so `make test` leaves it out.
test-arm64: $(DEV)
	$(MAKE) export MODEL=demo TARGET=cpu QUANT=int4 OUT=build/demo-cpu-int4
	$(MAKE) export MODEL=demo TARGET=cpu QUANT=int4 MIN_RUNTIME=1.24 OUT=build/demo-cpu-int4-1.24
	$(BIN)/python -m tests.targets.arm64 build/demo-cpu-int4 20
	$(BIN)/python -m tests.targets.arm64 build/demo-cpu-int4-1.24 5 1.24.3

# What onnxruntime-gpu's own libraries take of CUDA packages, without a GPU: half a gigabyte to fetch,
# so `make test` leaves it out.
test-cuda: $(DEV)
	$(MAKE) export MODEL=demo TARGET=cuda QUANT=int4 OUT=build/demo-cuda-int4
	$(MAKE) export MODEL=demo TARGET=cuda QUANT=mxfp4 OUT=build/demo-cuda-mxfp4
	$(MAKE) export MODEL=demo TARGET=cuda_sm70 QUANT=int4 OUT=build/demo-cuda_sm70-int4
	$(MAKE) export MODEL=demo TARGET=web QUANT=int4 OUT=build/demo-web-int4
	$(BIN)/python -m tests.targets.cuda_library
	$(BIN)/python -m tests.targets.cuda_library build/demo-cuda-int4 build/demo-cuda-mxfp4 \
		build/demo-cuda_sm70-int4 --refused build/demo-web-int4

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p build/typed/gptoss_onnx
	@ln -sfn $(foreach room,$(ROOMS),$(CURDIR)/$(room)) $(wildcard $(CURDIR)/gptoss_onnx/*.py) build/typed/gptoss_onnx/
	$(BIN)/mypy

$(VENV)/.%: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[$*]'
	touch $@ $(if $(filter dev,$*),$(EXPORT) $(EVAL) $(SERVE)) $(if $(filter eval,$*),$(EXPORT))

clean:
	rm -rf build $(VENV)
