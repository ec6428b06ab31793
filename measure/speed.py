"""How fast and how large: what a real-time factor (RTF) is here, and tables of teacher and one-step student.

    python -m measure.speed                                     on the machine at hand; minutes
    python -m measure.speed --sizes base --seconds 5 --batch 1 --bf16 --compile

Random weights in the shapes of SIZES: time does not depend on their values. Teacher: 10 steps with guidance,
20 network calls; student: 1 step, 1 call, without. The way on to sound, of real checkpoints: evaluate.py.
"""
import itertools
import statistics
from functools import partial

import torch

from common.cli import Parser, cli, count, in_turn, number, pick_device, processor
from common.files import markdown
from data import MelSettings
from distill import flow_rtf
from model import SIZES, DiT, DiTConfig, fold

RATE = 14                                       # symbols a second


def text_to_sound_rtf(systems, items, device):
    """Text-to-sound RTF: of one sentence, symbols -> durations -> mel -> audio, per second of it.

    systems {name: function(k) that speaks sentence k -> seconds of audio}, so any synthesiser can be one.
    They take turns at each of so many items -> {name: [RTF of each sentence]}.
    """
    rtf = {name: [] for name in systems}
    for k in range(items):
        seconds = {name: system(k) for name, system in systems.items()}
        times = in_turn({name: partial(system, k) for name, system in systems.items()}, 1, device)
        for name in systems:
            rtf[name].append(times[name][0] / seconds[name])
    return rtf


# ----------------------------------------------------------------------------------------------------- tables


def make_batch(batch, seconds, settings, device):
    """Sentences of so many seconds, without padding: what flow_rtf() takes."""
    T, L = round(seconds * settings.rate / settings.hop), round(seconds * RATE)
    g = torch.Generator().manual_seed(0)
    made = dict(text=torch.randint(1, 40, (batch, L), generator=g), mask=None,
                align=(torch.arange(T) * L // T).expand(batch, T),
                x0=torch.randn(batch, T, settings.n_mels, generator=g))
    return {k: v if v is None else v.to(device) for k, v in made.items()}


def networks(size, device, compiled):
    """Teacher and its one-step student -> {name: (DiT, steps, w)}; compiled: on CUDA with CUDA graphs."""
    teacher = DiT(DiTConfig(vocab=40, **SIZES[size])).to(device).eval().requires_grad_(False)
    student = fold(teacher, [1]).eval().requires_grad_(False)
    for net in (teacher, student) if compiled else ():
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        run = torch.compile(net.forward, mode=mode, dynamic=False)
        net.forward = lambda *inputs, run=run: run(*inputs).clone()               # its graph writes over it
    return {"teacher@10": (teacher, 10, 0.7), "student@1": (student, 1, 0.0)}


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__)
    add = p.add_argument
    add("--sizes", nargs="+", choices=SIZES, default=["tiny"], help="networks (default tiny)")
    add("--batch", type=count(), nargs="+", default=[1, 16], help="sentences at a time (default 1 16)")
    add("--seconds", type=number(0.1, 60), nargs="+", default=[2, 5, 10, 20],
        help="of speech each (default 2 5 10 20)")
    add("--rounds", type=count(), default=7, help="turns of each system (default %(default)s)")
    add("--bf16", action="store_true", help="compute in bfloat16 (autocast)")
    add("--compile", action="store_true", help="torch.compile, with CUDA graphs on CUDA")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    return p.parse_args()


def main():
    flags = arguments()
    device, settings = pick_device(flags.device), MelSettings()
    print(f"{processor(device)}, {'bfloat16' if flags.bf16 else 'float32'}{', compiled' * flags.compile}. "
          f"Teacher and student in turn, median (least to most) of {flags.rounds} turns.")
    for size in flags.sizes:
        nets = networks(size, device, flags.compile)
        columns = ["batch", "seconds", *(f"flow RTF {name}" for name in nets), "ratio"]
        print(f"\n{size}\n\n{markdown(columns, [])}")
        for batch, seconds in itertools.product(flags.batch, flags.seconds):
            with torch.autocast(device.type, torch.bfloat16, enabled=flags.bf16):
                flow = flow_rtf(nets, make_batch(batch, seconds, settings, device), settings, flags.rounds)
            slow, fast = (statistics.median(rounds) for rounds in flow.values())
            cells = [f"{statistics.median(rounds):.5f} ({min(rounds):.5f} to {max(rounds):.5f})"
                     for rounds in flow.values()]
            print(f"| {batch} | {seconds:g} | {' | '.join(cells)} | {slow / fast:.1f} |", flush=True)


if __name__ == "__main__":
    cli(main)
