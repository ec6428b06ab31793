"""Distribution matching: a student whose samples are as likely as its teacher's, on distill.py's loop.

    python -m methods.dmd --init checkpoints/student.pt --cfg 1 --lr 1e-4 --max_iters 1200 --pool 50 \
        --reuse 100

A squared error to the teacher's endpoint is least for a mean over what a small student cannot tell from x0,
and a mean of mels is a blur. Here its samples x1 are made likelier instead, by Distribution Matching
Distillation (Yin et al. 2024, arXiv 2311.18828, 2405.14867; for speech DMDSpeech, arXiv 2410.11097): noised
again to x_t, the teacher says where its data lie from there, and a second network, the fake, where the
student's samples lie; the gradient is their difference. Clock and shapes: see model.py.
"""
from common.cli import cli

import copy

import torch

from distill import Method, main
from sample import condition, cosine_grid, guided_velocity, rollout
from teacher import frame_mean


def fakes(teacher, steps):
    """One network for each step count n, since each has samples of its own; they begin as the teacher."""
    return torch.nn.ModuleDict({str(n): copy.deepcopy(teacher).requires_grad_(True).train() for n in steps})


def dmd_loss(student, batch, n, nets, anchor=0.1):
    """Match distributions of n-step samples -> (loss, its terms by name).

    The gradient of KL(student || teacher) at x_t is a difference of scores; a velocity v expects the data
    E[x1 | x_t] = x_t + (1 - t) v, so by this clock it is (1 - t) (v_fake - v_real) but for a factor. Per item
    it is divided by the teacher's mean absolute error, as in the paper. The fake learns by flow matching,
    from the same x_t. [ours] anchor: weight of the endpoint term, which keeps a sample at what the teacher
    makes of the same noise; gradients go through all n steps.
    """
    teacher, fake, w = nets["teacher"], nets["auxiliary"][str(n)], batch["w"]
    todo, mask = batch["todo"], batch["mask"]                                     # (B, T)
    x1 = rollout.__wrapped__(student, batch, cosine_grid(n), 0.0)[-1]             # (B, T, M), with gradients
    e, t = torch.randn_like(x1), 0.02 + 0.96 * batch["u"]["time"]                   # (B, T, M), (B,)
    left = (1 - t)[:, None, None]
    x_t = (left * e + (1 - left) * x1).detach()
    v_fake = fake(x_t, fake.step_condition(n, t, t), *condition(fake, batch)[0], mask)
    with torch.no_grad():
        cond = condition(teacher, batch, w != 0)
        v_real = guided_velocity(teacher, x_t, teacher.step_condition(n, t, t), *cond, w, mask)
        off = (x_t + left * v_real - x1).abs().mean(-1)                           # (B, T)
        off = (off * todo).sum(1) / todo.sum(1)                                   # (B,)
        likelier = x1 + left * (v_real - v_fake) / off[:, None, None]
    matching = 0.5 * frame_mean(((x1 - likelier) ** 2).mean(-1), todo)
    endpoint = frame_mean(((x1 - batch["states"][-1]) ** 2).mean(-1), todo)
    flow = frame_mean(((v_fake - (x1.detach() - e)) ** 2).mean(-1), todo)         # trains the fake alone
    return matching + anchor * endpoint + flow, dict(matching=matching, endpoint=endpoint, fake=flow)


METHODS = {"dmd": Method(dmd_loss, draws=("time",), auxiliary=fakes)}

if __name__ == "__main__":
    cli(lambda: main(METHODS))
