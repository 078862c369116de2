#!/usr/bin/env bash
# CPython 3.14.10 and 3.15.2, inspect.signature(annotation_format=annotationlib.Format.STRING): the
# annotation's code runs, and its errors come out.
#
# Expected: STRING gives annotations as they stand in the source (annotationlib's documentation), so
# that whoever only wants to know a function's arguments can look without evaluating anything.
# Met: names of the module are replaced by recorders, but builtins and literals are not: a call of a
# builtin happens, and an operation between literals that fails, such as "Name" | None of a forward
# reference in quotes, raises TypeError from inspect.signature().
# Output seen:
#     (x: "print('it runs')" = 1), and printed 'it runs'
#     TypeError: unsupported operand type(s) for |: 'str' and 'NoneType'
# For us: handlers are checked by a signature without annotations at all, taken from a function made
# of the same code (asyncserver/_handlers.py).
# Needs no package; PYTHON has to be 3.14 or newer.
set -euo pipefail
"${PYTHON:-python3}" -c 'import annotationlib' 2>/dev/null || exit 2
"${PYTHON:-python3}" - <<'PYTHON'
import annotationlib
import contextlib
import inspect
import io
import sys


def calls(x: print("it runs") = 1): ...


def quoted(x: "Name" | None): ...


STRING = annotationlib.Format.STRING
with contextlib.redirect_stdout(io.StringIO()) as printed:
    shown = inspect.signature(calls, annotation_format=STRING)
print(f"{shown}, and printed {printed.getvalue().strip()!r}")
try:
    raised = str(inspect.signature(quoted, annotation_format=STRING))
except TypeError as error:
    raised = f"TypeError: {error}"
print(raised)
sys.exit(printed.getvalue() != "it runs\n" or not raised.startswith("TypeError: unsupported operand"))
PYTHON
