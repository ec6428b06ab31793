"""What every command needs and a reader of the method does not.

cli.py    bad input as one line, flags, the device
files.py  text, audio, tables and weights, whole or not at all
flags.py  the flags of training commands
plots.py  pictures of mels and curves
run.py    a training run: resume, schedule, log, processes
"""
