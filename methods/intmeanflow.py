"""IntMeanFlow (arXiv 2510.07979) on distill.py's loop: a student of average velocities, and O3S, its search.

    python -m methods.intmeanflow --out out/imf                              distil; flags of distill.py
    python -m methods.intmeanflow --search 2 3 4 --ckpt out/imf/student.pt --teacher checkpoints/teacher.pt
                                                                     the best grids of 2, 3, 4 steps

Clock and shapes: see model.py.
"""
from common.cli import BadInput, Parser, cli, count, number, pick_device

import sys

import torch

import distill
from speech import text as reader
from networks.checkpoint import load_checkpoint, load_student, load_teacher, save_checkpoint
from sample import GRIDS, check_steps, condition, cosine_grid, speak, uniform_grid
from teacher import frame_mean

# ------------------------------------------------------------------------------------------- average velocity


DRAWS = ("interval", "pair", "same", "few")     # the random numbers of two_times


def two_times(batch, n, same=0.0):
    """Per item two states t <= r of its teacher trajectory -> their numbers i, j (B,), i < K.

    [ours; the papers do not say] half of the items take an interval of the n-step grid, a share `same` of the
    others has r = t, the rest is uniform over all pairs.
    """
    K = len(batch["grid"]) - 1
    u = batch["u"]                                                                # (B,) each
    pairs = torch.triu_indices(K + 1, K + 1, 1, device=u["pair"].device)          # (2, K (K + 1) / 2)
    i, j = pairs[:, (pairs.shape[1] * u["pair"]).long()]
    j = torch.where(u["same"] < same, i, j)
    k, few = (n * u["interval"]).long(), u["few"] < 0.5
    return torch.where(few, k * (K // n), i), torch.where(few, (k + 1) * (K // n), j)


def intmeanflow_loss(student, batch, n, nets=None):
    """u(z_t, t, r) regresses the teacher's average velocity from t to r.

    [ours] z_t and z_r are states of one guided rollout, j - i substeps apart; the student runs unguided.
    """
    X, grid = batch["states"], batch["grid"]                                      # (K + 1, B, T, M), (K + 1,)
    (i, j), items = two_times(batch, n), torch.arange(X.shape[1], device=X.device)
    z_t, z_r, t, r = X[i, items], X[j, items], grid[i], grid[j]                   # (B, T, M), (B,)
    u = student(z_t, (t, r), *condition(student, batch)[0], batch["mask"])
    v_bar = (z_r - z_t) / (r - t)[:, None, None]
    loss = frame_mean(((u - v_bar) ** 2).mean(-1), batch["todo"])
    return loss, dict(velocity=loss)


METHODS = {"intmeanflow": distill.Method(intmeanflow_loss, time="pair", dense=True, draws=DRAWS)}

# ------------------------------------------------------------------------------------------------------- O3S


def search_grid(score, n, sweeps=4, tolerance=0.01):
    """O3S, Optimal Step Sampling Search: a grid of n steps of high score(grid) -> (grid (n + 1,), score).

    The interior points start uniform. Sweeps over i = n - 1 ... 1 search t_i between its neighbours by
    thirds, the others fixed, until one gains nothing, or all are done. A real score has more than one hill:
    the best grid seen wins, so the result is never worse than the start. score: any function of a grid.
    """
    if n < 2:
        raise BadInput(f"--search {n}: there is nothing to search at fewer than two steps")
    best = uniform_grid(n)
    top = score(best)
    for _ in range(sweeps):
        before = top
        for i in range(n - 1, 0, -1):
            low, high = float(best[i - 1]), float(best[i + 1])
            while high - low > tolerance:
                third, scores = (high - low) / 3, []
                for t in (low + third, high - third):
                    grid = best.clone()
                    grid[i] = t
                    scores.append(score(grid))
                    if scores[-1] > top:
                        best, top = grid, scores[-1]
                low, high = (low + third, high) if scores[0] < scores[1] else (low, high - third)
        if top <= before:
            break
    return best, top


DEV = ["Please close the window before it rains.", "She counted seven boats on the quiet river.",
       "Why did nobody answer the letter?", "The baker opened his shop an hour late today."]


def closeness(mels, targets):
    """Minus the mean squared error to the targets, the teacher's fine solution from the same noise."""
    if [x.shape for x in mels] != [y.shape for y in targets]:
        raise BadInput("--teacher: its durations are not this student's; give the one it was distilled from")
    return -float(torch.cat([((x - y) ** 2).flatten() for x, y in zip(mels, targets)]).mean())


def search():
    """The command --search: O3S for each N on DEV, beside the other grids; what is found goes into --ckpt."""
    p = Parser(__doc__)
    add = p.add_argument
    add("--search", type=count(), nargs="+", required=True, metavar="N",
        help="step counts to find a grid for")
    add("--ckpt", required=True, help="teacher, or student of any step count; written anew with its grids")
    add("--teacher", help="of a student: the one it was distilled from (a teacher is compared with itself)")
    add("--cfg", type=number(0, 20), help="guidance w (default: the checkpoint's)")
    add("--seed", type=count(0), default=0, help="of the noise (default 0)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    flags = p.parse_args()
    device = pick_device(flags.device)
    bundle = load_checkpoint(flags.ckpt, device)
    student = bundle.contract["kind"] == "student"
    if bundle.contract["steps"] or not bundle.voices:
        steps = bundle.contract["steps"]
        why = f"takes {steps} steps on its own grid" if steps else "is F5-TTS's"
        raise BadInput(f"--search: {flags.ckpt} {why}; expected a checkpoint of ours that takes any grid")
    if student != bool(flags.teacher):
        raise BadInput("--teacher: a student needs the one it was distilled from, a teacher takes none")
    teacher = load_teacher(flags.teacher, "--teacher", device) if student else bundle
    if student:
        load_student(flags.ckpt, "--ckpt", teacher, bundle.model.config.time, device)
    w = check_steps(bundle, None, flags.cfg)[1]
    ids = [reader.encode(words, bundle.vocab, bundle.lang)[0] for words in DEV]
    voices = list(bundle.voices.values())[:2]

    def say(speaker, w, grid):
        return [mel for voice in voices
                for mel in speak(speaker, ids, voice, len(grid) - 1, w, flags.seed, 1.0, grid)]
    # A student has the guidance of its teacher inside, so the teacher speaks with it.
    targets = say(teacher, bundle.contract["cfg"] if student else w, cosine_grid(32))
    grids = dict(bundle.contract.get("grids", {}))
    for n in flags.search:
        def score(grid):
            return closeness(say(bundle, w, grid), targets)
        grid, top = search_grid(score, n)
        grids[str(n)] = grid.tolist()
        print(f"{n} steps, closeness: " + ", ".join(f"{k} {score(make(n)):.4f}" for k, make in GRIDS.items())
              + f", found {top:.4f} at {','.join(f'{t:.3f}' for t in grid.tolist())}")
    bundle.contract["grids"] = grids
    save_checkpoint(flags.ckpt, bundle)
    print(f"wrote {flags.ckpt}: sample.py and evaluate.py use these grids from now on; --grid takes another")


if __name__ == "__main__":
    cli(search if any(word.startswith("--search") for word in sys.argv) else lambda: distill.main(METHODS))
