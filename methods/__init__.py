"""Other losses on distill.py's loop.

intmeanflow.py  average velocities between any two times, and O3S, the search for step times
baselines.py    velocity, progressive, consistency, meanflow
dmd.py          distribution matching
own_steps.py    one call that arrives where a student's four do: what sample.py speaks with
pairs.py        what the networks make of recordings, for the vocoder to train on
"""
