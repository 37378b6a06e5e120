"""Sans-IO: bytes and descriptors' numbers in, calls on the device's verbs and bytes out."""
