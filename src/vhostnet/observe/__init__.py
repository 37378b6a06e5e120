"""What a running device tells of itself, for whoever asks: metrics, the control socket, `top`.

Only reading: records that the data path writes are looked at from outside, at any time, from any
thread, and nothing here parks a worker or takes a lock.
"""
