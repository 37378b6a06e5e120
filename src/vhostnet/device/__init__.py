"""The vhost device: owner, memory, vrings, backend slot, worker.  Knows no door.

`vhost_net.VhostNet` is one open instance of the driver; its methods are the driver's verbs.
"""
