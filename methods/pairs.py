"""What the networks make of recordings, frame by frame beside them: mels that a vocoder will hear, and sound.

    python -m methods.pairs --out out/pairs.pt
    python -m speech.vocoder --adversarial --pairs out/pairs.pt --init checkpoints/vocoder.pt --lr 3e-4

A vocoder trained on recordings hears cleaner mels than the networks make. A mel that a network makes has
no recording, unless it starts from the recording's own noise. That noise is found by walking the teacher's
path backwards, from the recording at t = 1 to t = 0; the student's one step from there is its take of this
very recording, at its pace and pitch. [ours] The first fifth is given, as a prompt gives the voice; half of
the noises are made weaker, as sample.py's temperature does. Clock and shapes: see model.py.
"""
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.cli import BadInput, Parser, cli, count, pick_device
from common.files import save_torch
from data import collate
from networks.checkpoint import load_student, load_teacher
from sample import condition, cosine_grid, rollout
from speech.audio import load_audio
from speech.prepare import prepare
from speech.vocoder import PAIRS


@torch.no_grad()
def noise_of(teacher, batch, grid):
    """The noise (B, T, M) from which the teacher's steps along grid lead to the batch's mel, unguided.

    Its deviation comes out lower than 1, since few steps backwards are not exact, and is set to 1.
    """
    x, (cond, _) = batch["mel"], condition(teacher, batch)
    times = grid.flip(0).to(x.device)
    for t, r in zip(times[:-1], times[1:]):
        x = x + (r - t) * teacher(x, teacher.step_condition(len(grid) - 1, t, r), *cond, batch["mask"])
    return x / x[batch["mask"]].std()


def take(teacher, student, corpus, items, scale, device):
    """Utterance numbers -> the student's one step from their noise times scale, (B, T, M), its error to the
    recordings over the frames that are not given, and how many are, (B,).
    """
    batch = {name: value.to(device) for name, value in collate(corpus, items).items()}
    given = batch["mask"].sum(1) // 5                                             # (B,)
    batch["known"] = torch.arange(batch["mask"].shape[1], device=device)[None] < given[:, None]
    batch["ref"] = batch["mel"] * batch["known"][..., None]
    batch["x0"] = scale * noise_of(teacher, batch, cosine_grid(16))
    x1 = rollout(student, batch, cosine_grid(1), 0.0)[-1]
    error = ((x1 - batch["mel"]) ** 2)[batch["mask"] & ~batch["known"]].mean()
    return x1.cpu(), float(error), given.cpu()


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__)
    add = p.add_argument
    add("--data", default="corpus", help="folder of recordings (default corpus)")
    add("--cache", default="cache", help="where mels and alignments are kept (default cache)")
    add("--teacher", default="checkpoints/teacher.pt", help="finds the noise (default %(default)s)")
    add("--students", nargs="+", default=["checkpoints/student_mean.pt", "checkpoints/student.pt"],
        help="students of it that take one step, in turn (default: the shipped ones)")
    add("--count", type=count(), default=300, help="recordings (default %(default)s)")
    add("--seed", type=count(0), default=0, help="which recordings (default 0)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    add("--out", type=Path, default=Path("out/pairs.pt"), help="the pairs (default %(default)s)")
    return p.parse_args()


def main(together=4):
    flags = arguments()
    if flags.out.suffix != ".pt" or flags.out.is_dir():
        raise BadInput(f"--out {flags.out}: expected the name of a .pt file")
    device = pick_device(flags.device)
    b = load_teacher(flags.teacher, "--teacher", device)
    students = [load_student(path, "--students", b, None, device) for path in flags.students]
    for path, student in zip(flags.students, students):
        steps = student.contract["steps"] or [1]                                  # []: it takes any
        if 1 not in steps:
            raise BadInput(f"--students {path}: takes {steps} steps; expected students that take one")
    corpus = prepare(flags.data, b.settings, b.lang, b.vocab, flags.cache)
    order = torch.randperm(len(corpus.train), generator=torch.Generator().manual_seed(flags.seed))
    items = sorted((corpus.train[i] for i in order[:flags.count]), key=lambda i: int(corpus.frames[i]))
    mels, wavs, errors = [], [], []
    for turn, first in enumerate(tqdm(range(0, len(items), together), "pairs", disable=None)):
        some = items[first:first + together]
        student = students[turn // 2 % len(students)].model
        made, error, given = take(b.model, student, corpus, some, (0.6, 1.0)[turn % 2], device)
        errors.append(error)
        for mel, i, start in zip(made, some, given.tolist()):
            wav = load_audio(Path(flags.data) / corpus.paths[i], b.settings)
            mels.append(mel[start:int(corpus.frames[i])].half())
            wavs.append(torch.from_numpy((wav[start * b.settings.hop:] * 32767).astype(np.int16)))
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    save_torch(flags.out, dict(format=PAIRS, mels=mels, wavs=wavs))
    print(f"{len(mels)} pairs, mel MSE to the recordings {np.mean(errors):.3f}; wrote {flags.out}")


if __name__ == "__main__":
    cli(main)
