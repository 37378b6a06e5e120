"""Confinement: what the daemon gives up before it lets a front-end in, and who keeps the rest.

Theory of operation
===================

A daemon that parses what guests write should be able to do little else.  Before the first door
opens, it becomes two processes:

the sealed process   the one that was started: control, workers, captures; all that reads a byte of
    a guest, a front-end or a control client.  All its threads are made after the seal, and are
    inside.
the opener           a child that was forked before numba was imported (of `vhostnet run`: the
    parent).  It has the rights that the daemon was started with, as far as it needs them, and does
    what is on a closed list (`acts`) if the command line, or the file of --config, allows it
    (`policy`).  It answers with descriptors, reads one small message at a time, and ends with the
    sealed process.

`seal` goes through the stages, in this order; each is a function here, says what holds, or raises
`Missing` with the reason why it can not be had on this host.  None depends on an earlier one.  A
door that cannot have a stage at all says so itself (`seal.Bounds`).

descriptors        what was inherited and nobody asked for is closed (at the very start)
no new privileges  exec gains nothing
namespaces         user, mount, network, ipc, uts; the root is an empty folder, except for
                   /proc/self/fd, whose links tell what a descriptor is
capabilities       none, in any set
landlock           no file, no TCP, no abstract socket, no signal to others
memory             nothing becomes executable that was not
system calls       an allow-list, with what some of them may be asked for; all else is EPERM

Caveats: a user namespace, landlock and capabilities are a thread's own, so the seal comes while
there is one thread. Nothing can be imported or loaded after it: the daemon imports what it may
need, and loads all the kernels that it may be asked for, before.

Why EPERM and not a signal: a call that is refused has done nothing, so killing adds no safety; and
the one daemon serves many guests, which would all lose their network for a call of libc's that was
not foreseen, or because one guest found a way to provoke a refusal. The kernel's log has a line for
each (SECCOMP_FILTER_FLAG_LOG, where auditing is on).

Not done: a PID namespace (it would need another process in between, and hide the front-ends' pids,
which are in log lines), and PR_SET_DUMPABLE of the sealed process (core dumps of a bug, and a
debugger, are for who runs the daemon; the opener is not dumpable).

The rooms above declare beside their code what they need: `SYSCALLS` (see `system_calls`), and
functions under `@act`. Source for the order of stages: passt's isolation.c.
"""
