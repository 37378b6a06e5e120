"""The path of a packet: compiled kernels and their records, nothing else.

`worker_loop` waits and calls `rx` and `tx`, which are written against three families of
names: a ring (`vring_ops`: `split_ring`), access to guest memory (`guest_memory_raw`) and a
backend (`backend_ops`: `via_tap`, `via_null`, `via_gen`, `via_loop`).  `layout` holds every
record; `catalogue` is the finite list of what gets compiled.

No objects, strings, logging or exceptions: a negative return is a code from `codes`.
"""
