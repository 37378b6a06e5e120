"""Real Linux guests on this machine, for the demo, the end-to-end tests and the benchmarks.

Nothing here imports numba or the daemon's own rooms: the daemon under test is always a
process of its own, started as a user would start it.

    tools         which program comes from which package; how processes are started
    netns         a network namespace of our own, and TAP devices in it
    guest_kernel  a distribution kernel, fetched once, never installed
    guest_image   the initramfs: busybox, iperf3, ethtool, the virtio modules
    guest_python  the same with python3 and the kernel's own vhost_net, for programs of ours
    guest_host    the same with this machine's own files and programs, below another kernel
    nested_host   that one as a running VM, with `vhostnet chardev` in it
    initramfs     the archive format, and what a binary or a module needs beside itself
    accel         whether KVM really works here
    machine       what a guest is made of, and the QEMU command line for it
    qemu          `GuestVM`: boot, run commands, QMP, kill
    qmp           QEMU's control channel
    console       the guest's shell over a serial port, for programs and for people
    daemon        `vhostnet serve` as a child process
    measure       ping, iperf3, file transfers with checksums
    report        the table and the JSON
    progress      one line a step, with the time left
    run_demo      `vhostnet demo`
"""
