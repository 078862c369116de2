"""Side-by-side figures for server libraries on this machine; `python -m benchmarks --help`.

Reading order: `peers` (who takes part), `workloads` (what they do), `load` and `load.c` (who asks),
`contender` (one running server), `measuring` (the rounds), `results` (the JSON), `targets`, `tables` and
`charts` (what is made of it), `guard` (counts that need no clock: `counting`, `instructions`).
"""
