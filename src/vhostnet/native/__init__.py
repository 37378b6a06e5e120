"""What compiled code stands on: the compile decorator, memory ordering, libc, mmap.

Files ending in `_raw` turn integers into pointers or call libc; nothing else does.
"""
