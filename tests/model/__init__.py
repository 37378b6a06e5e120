"""The device side of a virtio network card, slow and readable, from the specification.

It is what our data path is compared with: plain Python over byte strings, one object a thing,
an exception for each refusal, and no line shared with the device.  Section numbers are those of
VIRTIO 1.2; where the specification leaves a choice, the comment says whose choice is taken
(Linux's, or one that docs/differences.md lists).

memory        guest memory as regions
chains        what a chain is, and each reason to refuse one
split_ring    section 2.7
packed_ring   section 2.8
net_device    section 5.1.6: packets out and in, who is woken by what

`test_against_the_model` gives the same hostile rings to both.
"""
