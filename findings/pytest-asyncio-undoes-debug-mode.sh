#!/usr/bin/env bash
# pytest-asyncio 1.5.0: a loop that `pytest_asyncio_loop_factories` returns in debug mode is not in
# debug mode when the tests run.
#
# Expected: the hook says how loops are made, so a factory that calls `loop.set_debug(True)` decides
# it, as a factory given to `asyncio.Runner(loop_factory=...)` does.
# Met: the plugin passes its own option `asyncio_debug`, False unless it is set, to the runner, and
# that sets the loop's debug mode after the factory has. Nothing is logged: a suite that means to run
# in debug mode never does.
# Output seen:
#     asyncio.Runner with the factory: True
#     a test with the factory: False
#     the same with asyncio_debug = true: True
# For us: `asyncio_debug = true` in pyproject.toml, and a test that looks.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pytest==9.1.1 pytest-asyncio==1.5.0 || exit 2
cd "$folder"
cat > conftest.py <<'PYTHON'
import asyncio


def make():
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    return loop


def pytest_asyncio_loop_factories(config, item):
    return {"debugged": make}
PYTHON
cat > test_mode.py <<'PYTHON'
import asyncio
import pathlib


async def test_mode():
    pathlib.Path("seen").write_text(str(asyncio.get_running_loop().get_debug()))
PYTHON
see() { rm -f seen; venv/bin/python -m pytest -q -p no:cacheprovider -o asyncio_mode=auto "$@" > log 2>&1 || { cat log; exit 2; }; cat seen; }
cat > runner.py <<'PYTHON'
import asyncio
from conftest import make

async def main():
    return asyncio.get_running_loop().get_debug()

with asyncio.Runner(loop_factory=make) as runner:
    print(runner.run(main()))
PYTHON
runner=$(venv/bin/python runner.py); plain=$(see); asked=$(see -o asyncio_debug=true)
echo "asyncio.Runner with the factory: $runner"
echo "a test with the factory: $plain"
echo "the same with asyncio_debug = true: $asked"
test "$runner $plain $asked" = "True False True"
