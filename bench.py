"""How fast and how large: teacher and one-step student in turn, on the machine at hand.

    python bench.py                                     the same as python evaluate.py --bench; minutes
    python bench.py --sizes base --seconds 5 --batch 1 --bf16 --compile --profile

Random weights in the shapes of SIZES: time does not depend on their values. Teacher: 10 steps with guidance,
20 network calls; student: 1 step, 1 call, without. Flow: text branch and network, from characters and
durations to mels.
"""
import argparse
import platform
import resource
import statistics
import sys
import time as clock
from functools import partial

import torch
from tqdm import tqdm

from data import BadInput, MelSettings, check_numbers, cli, griffin_lim
from model import SIZES, DiT, DiTConfig, count_parameters, fold
from sample import cosine_grid, pick_device
from teacher import rollout

RATE = 14                                       # characters a second


def make_batch(batch, seconds, s, device):
    """Sentences of so many seconds, without a voice prompt: what rollout() takes, T = frames."""
    T, L, g = round(seconds * s.rate / s.hop), round(seconds * RATE), torch.Generator().manual_seed(0)
    made = dict(text=torch.randint(1, 40, (batch, L), generator=g), mask=None, known=None,
                align=(torch.arange(T) * L // T).expand(batch, T), ref=torch.zeros(batch, T, s.n_mels),
                x0=torch.randn(batch, T, s.n_mels, generator=g))
    return {k: v if v is None else v.to(device) for k, v in made.items()}


def wait(device):
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def in_turn(jobs, rounds, device):
    """{name: function} -> {name: seconds of each round}. A turn is one call to warm up, one that counts."""
    times = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            job()
            wait(device)
            start = clock.perf_counter()
            job()
            wait(device)
            times[name].append(clock.perf_counter() - start)
    return times


def peak_mib(job, device):
    """MiB of GPU memory that job() takes at most, with all weights."""
    torch.cuda.reset_peak_memory_stats()
    job()
    wait(device)
    return torch.cuda.max_memory_allocated() / 2**20


def bandwidth(device, mib=256):
    """Bytes a second that a copy reads and writes, best of 5."""
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)
    return 2 * mib * 2**20 / min(in_turn({"copy": lambda: target.copy_(source)}, 5, device)["copy"])


def networks(size, device, a):
    """Teacher and its one-step student, with the flags' speed-ups -> {name: (DiT, steps, w)}."""
    teacher = DiT(DiTConfig(vocab=40, **SIZES[size])).to(device).eval().requires_grad_(False)
    student = fold(teacher, [1]).eval().requires_grad_(False)
    if a.compile:                               # on CUDA also CUDA graphs: one launch a call
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        for net in (teacher, student):
            run = torch.compile(net.forward, mode=mode, dynamic=False)
            net.forward = lambda *inputs, run=run: run(*inputs).clone()           # its graph writes over it
    return {"teacher@10": (teacher, 10, 0.7), "student@1": (student, 1, 0.0)}


def measure(nets, batch, seconds, a, s, device):
    """One row of the table: (batch, seconds of speech) -> the figures as words."""
    inputs = make_batch(batch, seconds, s, device)

    def flow(name):
        net, steps, w = nets[name]
        with torch.autocast(device.type, torch.bfloat16, enabled=a.bf16):
            return rollout(net, inputs, cosine_grid(steps), w)[-1]
    mel = flow("student@1")[0].float().cpu()
    times = in_turn({name: partial(flow, name) for name in nets}, a.rounds, device)
    times |= in_turn({"vocoder": partial(griffin_lim, mel, s)}, min(3, a.rounds), device)
    middle = {name: statistics.median(t) for name, t in times.items()}
    speech = batch * seconds
    cells = [f"{batch}", f"{seconds:g}"]
    cells += [f"{middle[n] / speech:.5f} ({min(times[n]) / speech:.5f} to {max(times[n]) / speech:.5f})"
              for n in nets]
    cells += [f"{middle['teacher@10'] / middle['student@1']:.1f}", f"{middle['vocoder'] / seconds:.4f}"]
    cells += [f"{middle[n] / speech + middle['vocoder'] / seconds:.4f}" for n in nets]
    cells += [f"{middle['student@1'] / batch + middle['vocoder']:.3f}" if batch == 1 else ""]
    if device.type == "cuda":
        cells += [f"{peak_mib(partial(flow, name), device):.0f}" for name in nets]
    return cells


def main(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--sizes", nargs="+", choices=SIZES, default=["tiny"], help="networks (default tiny)")
    add("--batch", type=int, nargs="+", default=[1, 16], help="sentences at a time (default 1 16)")
    add("--seconds", type=float, nargs="+", default=[2, 5, 10, 20], help="of speech each (default 2 5 10 20)")
    add("--rounds", type=int, default=7, help="turns of each system (default %(default)s)")
    add("--bf16", action="store_true", help="compute in bfloat16 (autocast)")
    add("--compile", action="store_true", help="torch.compile, with CUDA graphs on CUDA")
    add("--profile", action="store_true", help="also where the student's time goes, at the first row's size")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    a = p.parse_args(words)
    check_numbers(a)
    if not all(0.1 <= seconds <= 60 for seconds in a.seconds):
        raise BadInput(f"--seconds {' '.join(f'{x:g}' for x in a.seconds)}: expected 0.1 to 60 each")
    device, s = pick_device(a.device), MelSettings()
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    memory = bandwidth(device)
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"{'bfloat16' if a.bf16 else 'float32'}{', compiled' * a.compile}. Teacher and student in turn, a "
          f"turn is one call to warm up and one that counts, median (least to most) of {a.rounds}. Vocoder: "
          f"Griffin-Lim, one sentence, on the CPU. Memory copies at {memory / 1e9:.0f} GB/s.")
    for size in a.sizes:
        nets = networks(size, device, a)
        (large, _), (light, _) = (count_parameters(net) for net, _, _ in nets.values())
        floor = light * (2 if a.bf16 else 4) / memory
        print(f"\n{size}: teacher {large:,} parameters, student {light:,}; to read the student's weights "
              f"once takes {1000 * floor:.3f} ms\n")
        columns = ["batch", "seconds", "flow RTF teacher@10", "flow RTF student@1", "ratio", "vocoder RTF",
                   "all RTF teacher@10", "all RTF student@1", "student's audio after (s)"]
        columns += ["teacher MiB", "student MiB"] * (device.type == "cuda")
        print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
        for batch in a.batch:
            for seconds in a.seconds:
                tqdm.write(f"| {' | '.join(measure(nets, batch, seconds, a, s, device))} |")
        if a.profile:
            inputs = make_batch(a.batch[0], a.seconds[0], s, device)
            with torch.profiler.profile() as profile:
                for _ in range(5):
                    rollout(nets["student@1"][0], inputs, cosine_grid(1), 0.0)
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12,
                                               max_name_column_width=40))
    if device.type != "cuda":
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        print(f"\npeak memory of the process: {peak:.0f} MiB")


def processor():
    """The CPU's name, as far as the system tells."""
    try:
        lines = open("/proc/cpuinfo").read().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    cli(main)
