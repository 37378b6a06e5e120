"""The workloads, a file for each kind."""
