"""What Linux's own driver does, recorded, and whether ours does the same.

rules        the rules that have to be shown
scenarios/   the shows: written once, run against the kernel's device and against ours
lab          what a scenario has in its hands
session      runs all scenarios against a device and returns the outcomes
record       boots Debian's kernels and writes golden/
differences  where we differ on purpose
"""
