"""What both papers compare with, on distill.py's loop: velocity, progressive, consistency, meanflow.

    python -m methods.baselines --method consistency --steps 1 2 4           flags of distill.py
    python -m methods.baselines --method progressive --steps 4 --out out/p4
    python -m methods.baselines --method progressive --steps 2 --init out/p4/student.pt --out out/p2    then 1

Clock and shapes: see model.py.
"""
from common.cli import BadInput, cli

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill import DRAWS, Method, dsflow_loss, interval, main
from methods import intmeanflow
from sample import condition, cosine_grid
from teacher import frame_mean


def progressive_loss(student, batch, n, nets):
    """Progressive distillation (Salimans and Ho 2022): one step does what two of the previous student do.

    nets["start"]: that student, given as --init, which takes 2 n steps. The first has none, its target is the
    teacher's own trajectory. [ours] starts are the teacher's states, the loss is in velocity.
    """
    X_s, X_e, s, e, _ = interval(batch, n)
    previous = nets["start"]
    if previous is not None:
        if previous.config.time == "step" and 2 * n not in previous.config.steps:
            raise BadInput(f"--init: takes {previous.config.steps} steps; expected a student of {2 * n} for "
                           f"--steps {n}")
        with torch.no_grad():
            grid, x = cosine_grid(2 * n).to(s.device), X_s
            k = torch.searchsorted(grid, s - 1e-4)                                # (B,) the interval's place
            cond, _ = condition(previous, batch)
            for j in (k, k + 1):                                                  # two steps of half the size
                v = previous(x, previous.step_condition(2 * n, grid[j], grid[j + 1]), *cond, batch["mask"])
                x = x + (grid[j + 1] - grid[j])[:, None, None] * v
        X_e = x
    v = student(X_s, student.step_condition(n, s, e), *condition(student, batch)[0], batch["mask"])
    loss = frame_mean(((v - (X_e - X_s) / (e - s)[:, None, None]) ** 2).mean(-1), batch["todo"])
    return loss, dict(velocity=loss)


def consistency_loss(student, batch, n, nets):
    """Consistency distillation (Song et al. 2023): f(x, t), the trajectory's end, is the same all along it.

    f(x, t) = x + (1 - t) v(x, t) holds f(x, 1) = x by itself. Of two neighbouring states of the teacher, the
    later one asks the average of the student, nets["ema"]. [ours] the weight is 1 at every t, and several
    steps are Euler's, as everywhere here, not Song's re-noising: mind that in its figures at 2 and 4 steps.
    """
    X, grid = batch["states"], batch["grid"]                                      # (K + 1, B, T, M), (K + 1,)
    i, items = ((len(grid) - 1) * batch["u"]["interval"]).long(), torch.arange(X.shape[1], device=X.device)
    x, y, t, r = X[i, items], X[i + 1, items], grid[i], grid[i + 1]               # (B, T, M), (B,)
    with torch.no_grad():
        f_y = y + (1 - r)[:, None, None] * nets["ema"](y, r, *condition(nets["ema"], batch)[0], batch["mask"])
    f_x = x + (1 - t)[:, None, None] * student(x, t, *condition(student, batch)[0], batch["mask"])
    loss = frame_mean(((f_x - f_y) ** 2).mean(-1), batch["todo"])
    return loss, dict(consistency=loss)


def meanflow_loss(student, batch, n, nets=None):
    """MeanFlow (Geng et al. 2025): u = v + (r - t) du/dt along the trajectory, from the teacher's velocity v.

    By this clock (r - t) u(z_t, t, r) is the integral of v from t to r; its derivative in t at fixed r gives
    the identity. du/dt is one forward-mode product with the tangents (v, 1), which the other methods avoid.
    As in the paper, each item's squared error e is weighted by 1 / (e + 0.001), without gradient.
    """
    if student.recompute:
        raise BadInput("--recompute: --method meanflow cannot, its forward-mode derivative needs activations")
    X, grid = batch["states"], batch["grid"]                                      # (K + 1, B, T, M), (K + 1,)
    (i, j), items = intmeanflow.two_times(batch, n, same=0.25), torch.arange(X.shape[1], device=X.device)
    z, t, r = X[i, items], grid[i], grid[j]                                       # (B, T, M), (B,)
    v = (X[i + 1, items] - z) / (grid[i + 1] - t)[:, None, None]                  # the guided teacher at z, t
    cond, _ = condition(student, batch)
    with sdpa_kernel(SDPBackend.MATH):          # the fused kernels have no forward-mode derivative
        u, du_dt = torch.func.jvp(lambda z, t: student(z, (t, r), *cond, batch["mask"]), (z, t),
                                  (v, torch.ones_like(t)))
    target = (v + (r - t)[:, None, None] * du_dt).detach()
    error = ((u - target) ** 2).mean(-1) * batch["todo"]                          # (B, T)
    error = error.sum(1) / batch["todo"].sum(1)                                   # (B,)
    return (error / (error.detach() + 1e-3)).mean(), dict(velocity=error.mean())


METHODS = {
    # a reflow loss on teacher pairs; t_mf from (0, 1): at 1/2 it never comes near X_s, where sampling asks
    "velocity": Method(dsflow_loss, ("weak_cfg",), dict(a=0.0, t_mf="uniform"), draws=DRAWS),
    "progressive": Method(progressive_loss),
    "consistency": Method(consistency_loss, time="t", dense=True),
    "meanflow": Method(meanflow_loss, time="pair", dense=True, draws=intmeanflow.DRAWS),
}

if __name__ == "__main__":
    cli(lambda: main(METHODS))
