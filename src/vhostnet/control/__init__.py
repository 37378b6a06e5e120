"""What a running daemon says of itself and lets be changed: the control socket.

    registry      a command is a function; its arguments are those that the function declares
    table         all commands, one line each
    daemon        what commands see of the daemon, whichever door it serves
    open_files    the same of `vhostnet run` and `vhostnet chardev`
    queries       query-*: what is read
    inspect       one ring, drawn
    changes       what is changed
    client        the other end, for `vhostnet ctl` and `vhostnet top`
    server        the socket, its clients, events

The protocol itself is `protocol/qmp_*.py`.  All of it runs in the control thread, so what control
owns stands still meanwhile; what a worker writes is read as it is at that moment.
"""
