"""`vhostnet chardev` in a VM, with Debian's kernel and without its driver."""
