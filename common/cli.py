"""Commands: bad input as one line, flags and their types, the device, optional packages, clocks."""
import argparse
import math
import os
import platform
import re
import socket
import sys
import time as clock
import urllib.parse
import urllib.request
from pathlib import Path

import soundfile
import torch

# -------------------------------------------------------------------------------------------------- bad input


class BadInput(Exception):
    """Something the user gave cannot be used. The message is one line: what, where, what would be right."""


def cli(main):
    """Run a command's main(): bad input becomes one line on stderr and exit status 2."""
    if hasattr(sys.stdout, "reconfigure"):
        # A character that the terminal lacks is shown as its code; a log file gets every line at once.
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        main()
    except (BadInput, soundfile.LibsndfileError) as problem:
        complain(problem)
    except OSError as problem:                  # no space, no permission, no such folder
        complain(f"cannot use {problem.filename or 'a file'}: {problem.strerror or problem}")
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as problem:
        if not type(problem).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise
        reason = str(problem).splitlines()[0][:150]
        complain(f"--compile: torch cannot compile on this machine ({reason}); leave it out")


def complain(problem):
    """One line on stderr, then exit status 2."""
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line like all others, and whose --help begins with a file's docstring.

    idle: [(flag, other)]: the first does nothing beside the second, so giving both is refused. given: the
    flags that were on the command line.
    """

    def __init__(self, description, idle=()):
        spec = sys.modules["__main__"].__spec__  # of python -m methods.dmd
        super().__init__(prog=f"-m {spec.name}" if spec else None, description=description,
                         formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        self.idle, self.given = idle, set()
        self.may_be_empty = {"--text", "--prompt_text", "--flags"}

    def parse_args(self, words=None):
        words = sys.argv[1:] if words is None else words
        flags = super().parse_args(words)
        self.given = {word.split("=")[0] for word in words} & set(self._option_string_actions)
        for word, after in zip(words, [*words[1:], None]):                        # as of an unset $VARIABLE
            flag, equals, value = word.partition("=")
            if flag in self.given and flag not in self.may_be_empty and "" == (value if equals else after):
                raise BadInput(f"{flag}: is given nothing; give it a value, or leave it out")
        for flag, other in self.idle:
            if {flag, other} <= self.given:
                raise BadInput(f"{flag}: does nothing beside {other}; leave one of them out")
        for flag, value in vars(flags).items():  # torch and libraries of audio and pictures write only such
            if flag in ("out", "cache") and re.search("[\udc80-\udcff]", str(value)):
                raise BadInput(f"--{flag} {ascii(str(value))}: its name is no UTF-8; choose another")
        return flags

    def error(self, message):
        if "expected one argument" in message:
            message += ' (one that begins with - is written with a =, like --text="-5 degrees")'
        raise BadInput(message.removeprefix("argument ") + f"; see python {self.prog} --help")


def number(low, high, kind=float):
    """A flag's type: a number from low to high (nan is none), whole where kind is int."""
    def convert(word):
        try:
            value = kind(word)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{word}: expected a {whole}number from {low:g} to {high:g}")
        return value
    return convert


def count(low=1, high=10**9):
    """A flag's type: a whole number from low on."""
    return number(low, high, int)


def need(package, flag, install=None):
    """Import an optional package -> module; BadInput that names it where it is missing."""
    try:
        return __import__(package)
    except ImportError:
        name = install or package
        raise BadInput(f"{flag} needs the package {name}: pip install {name}") from None


def ask_hub(name):
    """Before a model is asked for by its name on a hub: where none is to be reached, only what is here will
    be looked for. Its client would try again for half a minute.
    """
    place = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if Path(name).exists() or urllib.request.getproxies():
        return
    try:
        socket.create_connection((place.hostname, place.port or 443), timeout=3).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        for module in ("huggingface_hub.constants", "transformers.utils.hub"):    # read when it was imported
            if hasattr(sys.modules.get(module), "HF_HUB_OFFLINE"):
                sys.modules[module].HF_HUB_OFFLINE = True


def pick_device(name):
    """--device auto|cuda|mps|cpu -> torch.device, announced. Asking for what is absent is an error."""
    available = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    kinds = [kind for kind, there in available.items() if there]
    picked = kinds[0] if name == "auto" else name
    try:
        if picked.split(":")[0] not in kinds:
            raise RuntimeError
        torch.empty(0, device=picked)                                             # an index may be absent
    except RuntimeError:
        raise BadInput(f"--device {name}: not available here; use {' or '.join(kinds)}") from None
    detail = f"{torch.get_num_threads()} threads"
    print(f"device: {picked} ({torch.cuda.get_device_name(picked) if 'cuda' in picked else detail})")
    return torch.device(picked)


class Calls:
    """How often a network was called: counts what happens, not what should."""

    def __init__(self, model):
        self.number = 0
        model.register_forward_hook(self.add)

    def add(self, *_):
        self.number += 1


def synchronise(device):
    """Wait until the device has done what it was asked, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processor(device):
    """The machine, as far as the system tells: a GPU's or CPU's name, threads, and torch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpu = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
        models = [line.split(": ", 1)[1] for line in cpu.splitlines() if line.startswith("model name")]
        name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def in_turn(jobs, rounds, device):
    """{name: function} -> {name: seconds of each round}. A turn is a call to warm up and one that counts."""
    times = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            job()
            synchronise(device)
            start = clock.perf_counter()
            job()
            synchronise(device)
            times[name].append(clock.perf_counter() - start)
    return times
