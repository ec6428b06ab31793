"""How fast and how large: what a real-time factor (RTF) is here, and tables of teacher and one-step student.

    python -m measure.speed                                     on the machine at hand; minutes
    python -m measure.speed --sizes base --seconds 5 --batch 1 --bf16 --compile --profile

Random weights in the shapes of SIZES: time does not depend on their values. Teacher: 10 steps with guidance,
20 network calls; student: 1 step, 1 call, without. The way on to sound, of real checkpoints: evaluate.py.
"""
from common.cli import Parser, cli, count, in_turn, number, pick_device, processor
from common.files import markdown

import statistics
import sys
from functools import partial

import torch

from data import MelSettings
from model import SIZES, DiT, DiTConfig, count_parameters, fold
from distill import flow_rtf

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


def bandwidth(device, mib=256):
    """Bytes a second that a copy reads and writes, best of 5."""
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)
    return 2 * mib * 2**20 / min(in_turn({"copy": lambda: target.copy_(source)}, 5, device)["copy"])


def networks(size, device, compiled):
    """Teacher and its one-step student -> {name: (DiT, steps, w)}; compiled: on CUDA with CUDA graphs."""
    teacher = DiT(DiTConfig(vocab=40, **SIZES[size])).to(device).eval().requires_grad_(False)
    student = fold(teacher, [1]).eval().requires_grad_(False)
    for net in (teacher, student) if compiled else ():
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        run = torch.compile(net.forward, mode=mode, dynamic=False)
        net.forward = lambda *inputs, run=run: run(*inputs).clone()               # its graph writes over it
    return {"teacher@10": (teacher, 10, 0.7), "student@1": (student, 1, 0.0)}


def measure(nets, batch, seconds, flags, device):
    """One row of the table: (batch, seconds of speech) -> the figures as words."""
    settings, peaks = MelSettings(), []
    inputs = make_batch(batch, seconds, settings, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=flags.bf16):
        flow = flow_rtf(nets, inputs, settings, flags.rounds)
        for name in nets if device.type == "cuda" else ():
            torch.cuda.reset_peak_memory_stats(device)
            flow_rtf({name: nets[name]}, inputs, settings, 1)
            peaks.append(f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f}")
    middle = [statistics.median(values) for values in flow.values()]
    cells = [f"{m:.5f} ({min(values):.5f} to {max(values):.5f})" for m, values in zip(middle, flow.values())]
    return [batch, f"{seconds:g}", *cells, f"{middle[0] / middle[1]:.1f}", *peaks]


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
    add("--profile", action="store_true", help="also where the student's time goes, at the first row's size")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    return p.parse_args()


def main():
    flags = arguments()
    device = pick_device(flags.device)
    memory = bandwidth(device)
    print(f"{processor(device)}, {'bfloat16' if flags.bf16 else 'float32'}{', compiled' * flags.compile}. "
          f"Teacher and student in turn, a turn is one call to warm up and one that counts, median (least to "
          f"most) of {flags.rounds}. Memory copies at {memory / 1e9:.0f} GB/s.")
    columns = ["batch", "seconds", "flow RTF teacher@10", "flow RTF student@1", "ratio"]
    columns += ["teacher MiB", "student MiB"] * (device.type == "cuda")
    for size in flags.sizes:
        nets = networks(size, device, flags.compile)
        (large, _), (light, _) = (count_parameters(net) for net, _, _ in nets.values())
        floor = light * (2 if flags.bf16 else 4) / memory
        print(f"\n{size}: teacher {large:,} parameters, student {light:,}; to read the student's once "
              f"takes {1000 * floor:.3f} ms\n\n{markdown(columns, [])}")
        for batch in flags.batch:
            for seconds in flags.seconds:
                print(f"| {' | '.join(map(str, measure(nets, batch, seconds, flags, device)))} |", flush=True)
        if flags.profile:
            inputs = make_batch(flags.batch[0], flags.seconds[0], MelSettings(), device)
            with torch.profiler.profile() as profile:
                flow_rtf({"student@1": nets["student@1"]}, inputs, MelSettings(), 3)
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12,
                                               max_name_column_width=40))
    if sys.platform == "linux":
        import resource                                                           # Windows has none
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"\npeak memory of the process: {peak:.0f} MiB")


if __name__ == "__main__":
    cli(main)
