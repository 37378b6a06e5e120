"""`/dev/vhost-net` for one tree of processes: their calls trapped by seccomp, answered by us.

Theory of operation.  A command starts with a filter that stops a few of its system calls and
hands them to a supervisor (SECCOMP_RET_USER_NOTIF): calls with a path, because one of the paths
is the device's; ioctls of vhost's kind; and read, write and fstat, of a small reserved range of
descriptor numbers only.  What is not about the device is let go on as if nothing had been.

What an open gives is one end of a socket pair, put into the caller's descriptors by the
supervisor: its inode tells the open file, however it is copied, passed or inherited; its other
end sees the last close; and the messages that a driver of ours would give to read(2) lie in it,
so read, poll and epoll wait for them by themselves.

    abi           numbers and structs: seccomp, system calls, stat
    filter        which calls come to us, an assembled filter (`confinement.bpf`)
    listener_raw  installing it, and receiving and answering calls
    node          the device's node: which path it has, what stat says of it
    open_file     one open file: the socket pair and its `VhostFile`
    supervisor    the calls, one by one
    keeper        what answers when the supervisor has died
    tree          the processes; `waiting`, `command`, `supervision`: what each of them does
"""
