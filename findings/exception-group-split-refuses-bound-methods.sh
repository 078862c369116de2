#!/usr/bin/env bash
# CPython 3.11 and 3.12: ExceptionGroup.split() and subgroup() take a function, but no bound method.
#
# Expected: the condition "can be a function that accepts an exception and returns true" (3.11's
# documentation), and whatever can be called is taken as one elsewhere: by `map`, `sorted`,
# `re.sub`. From 3.13 on it is here, too.
# Met: with a bound method or a functools.partial, TypeError; the same wrapped in a lambda works.
# Output seen (3.11.7; 3.12.1 the same):
#     3.11 lambda: 1 matched
#     3.11 bound method: TypeError: expected a function, exception type or tuple of exception types
#     3.11 partial: TypeError: expected a function, exception type or tuple of exception types
# For us: conditions are lambdas where groups are split.
set -euo pipefail
cat > "${TMPDIR:-/tmp}/split-$$.py" <<'PYTHON'
import functools
import sys


class Known:
    def has(self, exc):
        return isinstance(exc, KeyError)


def has(known, exc):
    return known.has(exc)


group = ExceptionGroup("both", [KeyError("a"), ValueError("b")])
known, seen = Known(), []
for name, condition in {
    "lambda": lambda exc: known.has(exc),
    "bound method": known.has,
    "partial": functools.partial(has, known),
}.items():
    try:
        seen.append(f"{len(group.split(condition)[0].exceptions)} matched")
    except TypeError as exc:
        seen.append(f"TypeError: {exc}")
    print(f"{sys.version_info[0]}.{sys.version_info[1]} {name}: {seen[-1]}")
refused = "TypeError: expected a function, exception type or tuple of exception types"
sys.exit(2 if sys.version_info[:2] not in {(3, 11), (3, 12)} else seen != ["1 matched", refused, refused])
PYTHON
trap 'rm -f "${TMPDIR:-/tmp}/split-$$.py"' EXIT
"${PYTHON:-python3.11}" "${TMPDIR:-/tmp}/split-$$.py"
