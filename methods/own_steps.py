"""One call that arrives where a student's four do, from no noise, on distill.py's loop.

    python -m methods.intmeanflow --cfg 1 --max_iters 2600 --pool 217 --out out/mean
    python -m methods.own_steps --goal out/mean/student.pt --init checkpoints/student_one.pt --steps 1 \
        --cfg 1 --lr 4e-4 --ema 0.995 --reuse 3 --pool 100 --batch_frames 2400

IntMeanFlow's four calls sound as good as its teacher's twenty, and for one call they are a nearer
goal: few and unguided. Without --goal it is the several steps of --init itself. [ours] Two things make it
nearer still. Most items begin at x0 = 0, the mean of all noise, where sample.py begins: what cannot be told
from noise need not be guessed. And an update mostly sees what none saw before: such a trajectory costs four
calls, and three in five batches say other sentences than the recordings do. Clock and shapes: see model.py.
"""
from common.cli import BadInput, cli

import torch

from common.files import read_text
from common.run import parts, pooled, seed_update
from data import batch_indices, collate
from distill import DRAWS, Method, dsflow_loss, main
from networks.checkpoint import load_student
from sample import cosine_grid, front_end, rollout
from teacher import infill


def prompted(front, corpus, items, sentences, g):
    """Recordings' numbers -> a batch like infill()'s, but what is to be generated are sentences, drawn from
    a list of (L,) ids. Each stands behind one of the recordings, or the ready voice of its speaker, and has
    the pace that the duration predictor plans.
    """
    pad, texts, aligns, prompts = torch.nn.utils.rnn.pad_sequence, [], [], []
    for i in items:
        voice = dict(mel=corpus.mel(i), text=corpus.ids[i], durations=corpus.durations[i])
        if torch.rand((), generator=g) < 0.5:
            voice = front.bundle.voices.get(corpus.speakers[i], voice)
        ids = sentences[int(torch.randint(len(sentences), (), generator=g))]
        (text, align), = front.plan([ids], voice)
        texts, aligns, prompts = [*texts, text], [*aligns, align], [*prompts, voice["mel"].float()]
    frames = torch.arange(max(map(len, aligns)))[None]                            # (1, T)
    mask = frames < torch.tensor([[len(align)] for align in aligns])              # (B, T)
    known = frames < torch.tensor([[len(mel)] for mel in prompts])                # (B, T)
    ref = pad([torch.cat([mel, mel.new_zeros(len(align) - len(mel), mel.shape[1])])
               for mel, align in zip(prompts, aligns)], batch_first=True)         # (B, T, M)
    return dict(text=pad(texts, batch_first=True), align=pad(aligns, batch_first=True), mask=mask,
                known=known, todo=mask & ~known, ref=ref, x0=torch.randn(ref.shape, generator=g))


def own_steps(setup, flags, device, first):
    """distill.trajectories() of one interval: from weak noise to where --goal, or --init, leads in its most
    steps.
    """
    goal, corpus, front = setup.nets["start"], setup.corpus, front_end(setup.bundle)
    n = max(goal.config.steps, default=1) if goal else 1
    if flags.goal:
        found = load_student(flags.goal, "--goal", setup.bundle, None, device)
        goal, n = found.model, max(found.contract["steps"], default=4)            # 4 of any number
    if flags.steps != [1]:
        raise BadInput(f"--steps {' '.join(map(str, flags.steps))}: expected --steps 1, the call that learns")
    if n == 1:
        given = f"--goal {flags.goal}" if flags.goal else f"--init {flags.init}" if flags.init else "--goal"
        raise BadInput(f"{given}: expected a student of several steps, from which one call learns")
    if setup.bundle.duration is None:
        raise BadInput(f"--teacher {flags.teacher}: has no durations to say other sentences with")
    sentences = (front.chunks(read_text(flags.sentences, "--sentences"), flag="--sentences")
                 if flags.sentences else [corpus.ids[i] for i in corpus.train])

    def make(number, items):
        g, items = seed_update(flags.seed + 1, number), [corpus.train[i] for i in items]
        batch = (prompted(front, corpus, items, sentences, g) if number % 5 < 3 else
                 infill(collate(corpus, items), g, flags.p_noref, 0.0))
        weak, drawn = torch.rand(2, len(items), generator=g)                      # (B,) each
        batch["x0"] = (weak * (drawn < 0.2))[:, None, None] * batch["x0"]         # 4 in 5 begin at 0
        batch, made = {name: value.to(device) for name, value in batch.items()}, []
        for part in parts(batch, flags.accumulate):
            with torch.autocast(device.type, torch.bfloat16, enabled=flags.bf16):
                ends = rollout(goal, part, cosine_grid(n), 0.0)[[0, -1]]          # (2, B, T, M)
            made.append(dict(part, states=ends, grid=torch.tensor([0.0, 1.0], device=device)))
        return made
    batches = batch_indices(corpus.frames[corpus.train], flags.batch_frames, flags.seed)
    return pooled(make, batches, flags.pool, flags.reuse, first)


METHODS = {"own_steps": Method(dsflow_loss, fixed=dict(a=1.0, weak_cfg=False), draws=DRAWS, source=own_steps,
                               noise=0.0)}

if __name__ == "__main__":
    cli(lambda: main(METHODS))
