"""Captures of the packets that queues move: pcapng files, filters, and the thread that writes."""
