"""What every command needs and a reader of the method does not.

cli.py    bad input as one line, flags, the device
files.py  text, audio, tables and weights, whole or not at all
flags.py  the flags of training commands
plots.py  pictures of mels and curves
run.py    a training run: resume, schedule, log, processes
"""
import atexit
import os
import shutil
import tempfile

home = os.path.expanduser("~")
if not (os.path.isdir(home) and os.access(home, os.W_OK)):
    # set before librosa and matplotlib are imported: numba without a folder to cache in is a traceback
    place = tempfile.mkdtemp(prefix="cache-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        os.environ.setdefault(name, place)
