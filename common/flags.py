"""The flags of the commands of the reading path, with their reasons, so that the path itself is method."""
import argparse
from pathlib import Path

from common.cli import count, number


def language(name):
    """The type of teacher.py's --lang: all that text.py reads but f5, which has no durations."""
    if name == "f5":
        raise argparse.ArgumentTypeError("f5 is of F5-TTS's own checkpoints; expected a language or letters")
    return name


def training_flags(add, out, **default):
    """The flags that every training command has. default: of those whose default differs between them."""
    add("--data", default="corpus", help="folder of recordings, see prepare.py (default corpus)")
    add("--out", type=Path, default=Path(out),
        help="checkpoints, log, tables, pictures and audio go here (default %(default)s)")
    add("--cache", default="cache", help="where mels and alignments are kept (default %(default)s)")
    add("--keep_outliers", action="store_true", help="take recordings whose text and sound do not fit")
    add("--keep_unknown", action="store_true", help="take texts that lose letters or are of another language")
    add("--max_iters", type=count(), default=default["max_iters"], help="updates (default %(default)s)")
    add("--batch_frames", type=count(), default=default["batch_frames"],
        help="mel frames per update, padding included (default %(default)s)")
    add("--accumulate", type=count(1, 10**4), default=1,
        help="parts of a batch, one after the other: less memory, the same update (default %(default)s)")
    add("--lr", type=number(1e-9, 1), default=default["lr"],
        help="peak learning rate of AdamW (default %(default)s)")
    add("--warmup", type=count(0), default=default["warmup"],
        help="updates of linear warm-up (default %(default)s)")
    add("--ema", type=number(0, 1), default=default["ema"],
        help="decay of the weight average that is saved (default %(default)s)")
    add("--p_noref", type=number(0, 1), default=default["p_noref"],
        help="share without a reference, of the items with text (default %(default)s)")
    add("--cfg", type=number(0, 20), default=default["cfg"], help=default["cfg_help"])
    add("--eval_every", type=count(), default=default["eval_every"],
        help="updates between reports (default %(default)s)")
    add("--save_every", type=count(), default=default["save_every"],
        help="updates between checkpoints (default %(default)s)")
    add("--resume", action="store_true",
        help="continue the run in --out with the same flags; --max_iters may change, the schedule follows it")
    add("--overwrite", action="store_true", help="replace the run that is in --out")
    add("--seed", type=count(0), default=0, help="everything random follows from it (default 0)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")


def distill_flags(add, methods):
    """The flags of distill.py and of commands that stand on it. methods: what --method offers."""
    first = next(iter(methods))
    add("--steps", type=count(), nargs="+", default=[1, 2, 4],
        help="network steps the student is made for (default 1 2 4)")
    add("--teacher", default="checkpoints/teacher.pt",
        help="checkpoint of teacher.py or f5.py (default %(default)s)")
    add("--init", help="start from this student of the same teacher instead of from the teacher's weights")
    add("--method", choices=methods, default=first, help=f"the loss (default {first})")
    add("--goal", help="own_steps: the student whose several steps one call learns (default: --init)")
    add("--sentences", help="own_steps: a text, whose sentences the voices of --data say too (default: each "
        "other's)")
    add("--a", type=number(0, 1), help="dsflow: weight of the endpoint (default 0.7)")
    add("--t_mf", choices=["mid", "uniform"], help="dsflow: where on the chord (default mid)")
    add("--no-weak_cfg", dest="weak_cfg", action="store_false", default=None, help="leave L_CFG out")
    add("--no-tokens", dest="tokens", action="store_false",
        help="the student keeps the teacher's timestep network and its t")
    add("--token", choices=["add", "prepend"], default="add",
        help="how a step token enters in place of adaLN (default add)")
    add("--teacher_steps", type=count(1, 1000), default=10,
        help="steps of the target's rollout, at least (default %(default)s)")
    training_flags(add, "out/distill", max_iters=1300, batch_frames=800, lr=3e-4, warmup=20, ema=0.99,
                   p_noref=0.1, cfg=0.7, eval_every=200, save_every=200,
                   cfg_help="guidance w inside the target (default %(default)s, the paper's)")
    add("--reuse", type=count(), default=6, help="updates from each teacher trajectory (default %(default)s)")
    add("--pool", type=count(), default=217, help="trajectories kept at a time (default %(default)s)")
    add("--bf16", action="store_true", help="train in bfloat16 (autocast); weights and reports stay float32")
    add("--recompute", action="store_true",
        help="keep no activations inside blocks, compute them again for the gradient: less memory, slower")
    add("--count", type=count(), default=16, help="held-out recordings in the reports (default %(default)s)")


def teacher_flags(add, sizes, backbones):
    """The flags of teacher.py. sizes, backbones: what --size and --backbone offer."""
    training_flags(add, "out/teacher", max_iters=6500, batch_frames=2000, lr=1.5e-3, warmup=200, ema=0.999,
                   p_noref=0.3, cfg=1.5, eval_every=1000, save_every=500,
                   cfg_help="guidance of the samples, sample.py's default for this teacher (default "
                   "%(default)s)")
    add("--backbone", choices=backbones, default="dit",
        help="the network: dit; e2, where time is a frame; f5, without durations; f5_e2, both; unet; own, "
        "a network of your own (default dit)")
    add("--size", choices=sizes, default="tiny", help="tiny 3M (CPU), small 19M, base 82M (default tiny)")
    add("--lang", type=language, default="en-us", help="how texts are read: a language of gruut's "
        "(phonemes), letters (of English words) or none (characters as they are) (default %(default)s)")
    add("--init", help="start from this teacher and keep its size and symbols: fine-tuning")
    add("--duration_iters", type=count(0), default=1500,
        help="updates of the duration predictor, which overfits soon after (default %(default)s)")
    add("--p_nothing", type=number(0, 1), default=0.15,
        help="share of items trained without reference and text (default %(default)s)")


def sample_flags(add):
    """The flags of sample.py."""
    add("--text", help="what to say; long text is spoken in sentence chunks")
    add("--text_file", metavar="FILE", help="a file that holds the text; - is standard input")
    add("--ckpt", default="checkpoints/student_one.pt", help="teacher or student (default %(default)s)")
    add("--steps", type=int, help="network steps (default: a student's fewest, 10 for a teacher)")
    add("--cfg", type=number(0, 20),
        help="guidance w in v_c + w (v_c - v_u); above 0 each step is two network calls (default: 0 for a "
        "student, for a teacher the --cfg of its training run)")
    add("--grid", help="times of the steps: cosine, uniform, or 0,0.3,1 (default: the checkpoint's own)")
    add("--voice", help="one of the checkpoint's own voices, or 'none' (default: its usual one)")
    add("--prompt", help="a recording whose voice to use, with --prompt_text")
    add("--prompt_text", help="the words spoken in --prompt")
    add("--speed", type=number(0.25, 4), default=1.0, help="2 is twice as fast (default 1)")
    add("--seed", type=number(0, 10**9, int), help="another take for each number: item i's noise is from "
        "(seed, i) (default: no noise, the clearest take)")
    add("--temperature", type=number(0, 2), help="standard deviation of the noise: below 1 less varied and "
        "clearer, as in Matcha-TTS (default 0, with --seed 0.5; for F5-TTS 1, which is what training knows)")
    add("--vocoder", help="griffin_lim, a .pt of vocoder.py, or a folder or hub name of SpeechT5's "
        "HiFi-GAN or, for F5-TTS, Vocos (default: checkpoints/vocoder.pt if it fits, else griffin_lim)")
    add("--bf16", action="store_true", help="compute in bfloat16: pays for large networks and long batches")
    add("--compile", action="store_true", help="torch.compile the network: half a minute, for long text")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    add("--out", type=Path, default=Path("out/sample.wav"), help="a .wav or .flac; a .png goes beside it")
