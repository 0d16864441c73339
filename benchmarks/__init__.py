"""What kvcluster costs beside its peers: `python -m benchmarks`, or `make bench`.

Times mean little away from the machine they were taken on, so every figure is a ratio of two times taken a moment apart on the
same real nodes. Each client lives in a process of its own (`worker`), and the processes take turns, A B C A B C …, in short
blocks (`run`); the figure is the median over the rounds of each round's ratio. Whatever disturbs the machine for a second
disturbs a round, not a ratio.

The floor is what no client can be faster than by much: raw sockets, requests made beforehand, replies counted but not parsed
(`floor`).
"""
