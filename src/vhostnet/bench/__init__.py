"""The benchmark: vhostnet beside what a user would take instead, in turns, on one machine.

Nothing here imports numba or the daemon's own rooms: every device and driver that is measured
is a process of its own, started as a user would start it.  (`own_driver` is such a process.)

    model         workloads, cases, sides, metrics
    catalogue     the list of workloads
    workloads/    a file for each kind
    runner        in turns; failures; what disturbed
    pair          devices and drivers of both sides, each on a core
    testpmd       DPDK's testpmd as a child process
    own_driver    the compiled driver of `vhostnet_frontend` as a process
    hugepages     2 MiB pages for as long as they are needed
    environment   machine, versions, revision, who else is working
    results       the JSON: every run; reading checks everything
    statistics    medians, spreads, ratios within a turn
    tables, plots Markdown and SVG from the results
    publish       benchmarks/results and docs/benchmarks.md
    run_bench     `vhostnet bench`
"""
