"""Confinement: what filters of system calls are made of."""
