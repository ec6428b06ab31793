"""Mel -> audio: a small network finds the magnitudes, phases.py the phases.

    python -m speech.vocoder --data corpus                                      train the network
    python -m speech.vocoder --data corpus DIR --init checkpoints/vocoder.pt   on your recordings too
    python -m speech.vocoder --adversarial --init out/vocoder/vocoder.pt --lr 3e-4 --batch 10 --out out/judged

The first trains magnitudes alone, against those of the recordings. --adversarial goes on through the phases
and the sound, judged by discriminators.py: magnitudes then allow for what the phases cannot do. With --pairs
of methods/pairs.py half of what it hears are mels that the networks made, as it will when it speaks. Of all
that was tried for the sound this gained most (results/sound.md).

Shapes: B batch, T frames, M mel bands, F = n_fft / 2 + 1 frequencies, W width of the network, and
U = 2 T - 1 frames half a hop apart, from which phases are found better.
"""
import copy
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.cli import BadInput, Parser, ask_hub, cli, count, need, number, pick_device
from common.files import digest, fit_weights, load_torch, save_torch
from common.run import Run, adamw, claim, ema_update, learning_rate, optimise, seed_update
from data import MelSettings, log_mel, mel_spectrogram
from speech.audio import MELS, check_settings, load_audio, renamed_mel
from speech.corpora import find_utterances
from speech.discriminators import discriminators, generator_losses, hinge_loss, spectral_loss
from speech.phases import FLOOR, blurred, fast_griffin_lim, griffin_lim

WEIGHTS, FORMAT = Path(__file__).parent.parent / "checkpoints" / "vocoder.pt", "dsflow-vocoder-1"
PAIRS = "dsflow-pairs-1"         # the format of methods/pairs.py's files


class Block(nn.Module):
    """ConvNeXt block over frames (Liu et al. 2022; in a vocoder: Siuzdak 2024), (B, T, W) -> the same."""

    def __init__(self, width):
        super().__init__()
        self.near, self.norm = nn.Conv1d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(self.near(x.mT).mT))))


def half_hop(settings):
    """Settings of the frames that the vocoder writes, two a hop."""
    return replace(settings, hop=settings.hop // 2)


def halfway(mel):
    """Mel (B, T, M) -> what lies half a hop after each of its frames, by a cubic through the four around."""
    around = nn.functional.pad(mel.mT, (1, 2), "replicate").unfold(2, 4, 1)       # (B, M, T, 4)
    return (around @ mel.new_tensor([-1, 9, 9, -1]) / 16).mT


class Vocoder(nn.Module):
    """Log of the pseudo-inverse plus a correction from frames around; 1.9M parameters. Centred mels only.

    It reads frames a hop apart, first those of the mel, then those halfway between.
    """

    def __init__(self, settings, width=256, blocks=6):
        super().__init__()
        self.settings, self.read = settings, nn.Conv1d(settings.n_mels, width, 7, padding=3)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.write = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, settings.n_fft // 2 + 1))

    def forward(self, mel):
        """Normalised log mel (B, T, M) -> natural log magnitudes (B, U, F)."""
        both = torch.cat([mel, halfway(mel)])                                     # (2 B, T, M)
        log = blurred(both, self.settings).clamp(min=FLOOR).log()                 # (2 B, T, F)
        log = log + self.write(self.blocks(self.read(both.mT).mT))
        return torch.stack(log.chunk(2), 2).flatten(1, 2)[:, :-1]

    def sound(self, log):
        """Log magnitudes (B, U, F), as forward() gives them -> audio (B, (T - 1) * hop)."""
        return fast_griffin_lim(log.clamp(-9.0, 6.0).exp(), half_hop(self.settings))

    @torch.no_grad()
    def speak(self, mel, settings=None):
        """Normalised log mel (T, M) -> audio ((T - 1) * hop,) float32."""
        return self.sound(self(mel[None].to(self.read.weight)))[0].cpu().numpy()


def load_net(path, device="cpu"):
    """A vocoder.pt -> Vocoder, float32."""
    content = load_torch(path, FORMAT, "a vocoder.pt of vocoder.py")
    try:
        settings = MelSettings(**renamed_mel(content["mel"]))
        check_settings(settings)
        net = fit_weights(Vocoder(settings), content["net"], "net")
    except (ValueError, KeyError, TypeError, RuntimeError) as problem:
        raise BadInput(f"{path}: does not fit vocoder.py ({str(problem)[:120]}); train it anew") from None
    return net.to(device).eval()


def load_vocoder(name, settings, device="cpu"):
    """--vocoder: a .pt, hub name or folder -> a function (mel (T, M), settings) -> audio (samples,).

    None: checkpoints/vocoder.pt if it is there and for these mels, else griffin_lim. SpeechT5's HiFi-GAN
    (package transformers) for our mels, Vocos (package vocos) for those of F5-TTS. It runs on device;
    BadInput when it does not fit or its package is missing.
    """
    ours = str(name).endswith(".pt") or name is None and WEIGHTS.is_file()
    net = load_net(name or WEIGHTS, device) if ours else None
    if net and net.settings == settings:
        return net.speak
    if name in (None, "griffin_lim"):
        return griffin_lim
    if net or settings not in (MELS["speecht5"], MELS["vocos"]):
        raise BadInput(f"--vocoder {name}: none is known for these mels, {settings}; leave it out")
    ask_hub(name)
    try:
        if settings == MELS["vocos"]:
            Vocos = need("vocos", "--vocoder").Vocos
            if Path(name).is_dir():
                net = Vocos.from_hparams(Path(name) / "config.yaml")
                net.load_state_dict(torch.load(Path(name) / "pytorch_model.bin", weights_only=True))
            else:
                net = Vocos.from_pretrained(name)
            net = net.to(device).eval()
            return lambda mel, s: net.decode(log_mel(mel.to(device).float(), s).T[None])[0].cpu().numpy()
        net = need("transformers", "--vocoder").SpeechT5HifiGan.from_pretrained(name).to(device).eval()
        net.requires_grad_(False)
        return lambda mel, s: net(log_mel(mel.to(device).float(), s)).cpu().numpy()
    except (OSError, ValueError, RuntimeError) as problem:
        raise BadInput(f"--vocoder {name}: {str(problem).splitlines()[0]}") from None


def read_sound(folders, settings, length):
    """All recordings, one after the other -> samples to train on, held-out samples, each (samples,) int16.

    The text decides what is held out, 4 in 100, as in data.Corpus. Less than `length` samples is BadInput.
    """
    parts = [], []
    for _, path, text, _ in [row for folder in folders for row in find_utterances(folder)[0]]:
        try:
            wav = (load_audio(path, settings) * 32767).astype(np.int16)
            parts[zlib.crc32(text.encode()) % 100 < 4].append(wav)
        except BadInput as problem:
            print(f"skipped: {problem}")
    train, held = (torch.from_numpy(np.concatenate([*part, np.zeros(0, np.int16)])) for part in parts)
    if len(train) <= length:
        raise BadInput(f"--data {' '.join(folders)}: needs a second of recordings or more")
    return train, held if len(held) > length else train


def excerpts(sound, starts, length, settings):
    """Excerpts of so many samples from `starts` on -> log mels (B, T, M), magnitudes (B, U, F), audio (B, N).
    """
    wavs = torch.stack([sound[i:i + length] for i in starts]) / 32767             # (B, N)
    return torch.stack([mel_spectrogram(wav, settings) for wav in wavs]), magnitudes(wavs, settings), wavs


def magnitudes(wavs, settings):
    """Audio (B, N) -> magnitudes (B, U, F), every other frame that of the mel."""
    return torch.stft(wavs, settings.n_fft, settings.hop // 2, window=torch.hann_window(settings.n_fft),
                      pad_mode="reflect", return_complex=True).abs().mT


def load_pairs(path, frames, settings):
    """A file of methods/pairs.py -> [(mel (T, M), audio (samples,) int16)] of more than so many frames."""
    content = load_torch(path, PAIRS, "pairs of methods/pairs.py")
    pairs = [(mel, wav) for mel, wav in zip(content["mels"], content["wavs"])
             if len(mel) > frames and len(wav) >= (len(mel) - 1) * settings.hop]
    if not pairs or pairs[0][0].shape[1] != settings.n_mels:
        raise BadInput(f"--pairs {path}: none is longer than {frames} frames of {settings.n_mels} bands")
    return pairs


def with_pairs(batch, pairs, settings, g):
    """What excerpts() gave, with half of it replaced by mels that networks made and the sound they belong to.
    """
    mels, _, wavs = (x.clone() for x in batch)
    for b in range(len(mels) // 2):
        mel, wav = pairs[int(torch.randint(len(pairs), (), generator=g))]
        k = int(torch.randint(len(mel) - mels.shape[1], (), generator=g))
        mels[b] = mel[k:k + mels.shape[1]].float()
        wavs[b] = wav[k * settings.hop:][:wavs.shape[1]].float() / 32767
    return mels, magnitudes(wavs, settings), wavs


def losses(log, magnitude):
    """Log magnitudes, true magnitudes (B, U, F) -> L1 of the log, and L1 of magnitudes over their mean."""
    return ((log - magnitude.clamp(min=FLOOR).log()).abs().mean(),
            (log.exp() - magnitude).abs().mean() / magnitude.mean())


def adversarial_losses(critics, log, wavs, net, optimiser, rate, step):
    """The terms of adversarial training, after an update of the critics -> {name: ()} and theirs, ().

    log (B, U, F): the network's log magnitudes; wavs (B, N): the recordings'. Judges learn first, from the
    copies that the network makes now.
    """
    copies = net.sound(log)                                                       # (B, N)
    hinge = hinge_loss(critics, wavs, copies)
    hinge.backward()
    optimise(optimiser, [rate, rate], step)
    score, matching = generator_losses(critics, wavs, copies)
    return dict(spectral=spectral_loss(copies, wavs), score=score, matching=matching), hinge


# At a score's weight of 1, copies please the critics and leave the recordings.
LOSS_WEIGHTS = dict(log_loss=0.5, loss=0.5, spectral=2.0, score=0.15, matching=0.3)


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__, idle=[("--overwrite", "--resume")])
    add = p.add_argument
    add("--data", nargs="+", default=["corpus"], help="folders of recordings (default corpus)")
    add("--out", type=Path, default=Path("out/vocoder"), help="for vocoder.pt and log (default %(default)s)")
    add("--init", help="a vocoder.pt to start from")
    add("--adversarial", action="store_true", help="train through the phases, judged; wants --init")
    add("--pairs", help="a file of methods.pairs: half of each batch is mels that networks made")
    add("--max_iters", type=count(), default=4000, help="updates (default %(default)s)")
    add("--batch", type=count(), default=16, help="excerpts of 0.8 s per update (default %(default)s)")
    add("--eval_every", type=count(), default=500, help="updates between reports (default %(default)s)")
    add("--save_every", type=count(), default=500, help="updates between checkpoints (default %(default)s)")
    add("--lr", type=number(1e-9, 1), default=2e-3, help="peak learning rate of AdamW (default %(default)s)")
    add("--resume", action="store_true", help="continue the run in --out; --max_iters may change")
    add("--overwrite", action="store_true", help="replace the run that is in --out")
    add("--seed", type=count(0), default=0, help="everything random follows from it (default 0)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    flags = p.parse_args()
    if flags.adversarial and not flags.init:
        raise BadInput("--adversarial: goes on from a trained network; give one as --init")
    return flags


def main(frames=49):
    flags = arguments()
    device = pick_device(flags.device)
    lock = claim(flags)                                                           # until this process ends
    torch.manual_seed(flags.seed)
    net = load_net(flags.init) if flags.init else Vocoder(MelSettings())
    settings, length = net.settings, (frames - 1) * net.settings.hop
    sound, held = read_sound(flags.data, settings, length)
    pairs = load_pairs(flags.pairs, frames, settings) if flags.pairs else []
    seconds, kept = (len(x) / settings.rate for x in (sound, held))
    print(f"{seconds / 60:.1f} min to train on, {kept:.0f} s held out")
    ema = copy.deepcopy(net.to(device).train()).requires_grad_(False).eval()
    critics = discriminators().to(device) if flags.adversarial else torch.nn.ModuleList()
    optimiser = adamw([dict(params=net.parameters()), dict(params=critics.parameters())], flags.lr, 0.01)
    recipe = dict(vars(flags), sound=zlib.crc32(sound.numpy().tobytes()),
                  init=flags.init and digest(flags.init), pairs=flags.pairs and digest(flags.pairs))
    run = Run(flags, device, dict(net=net, ema=ema, critics=critics), optimiser, recipe)
    starts = range(0, len(held) - length, len(held) // 64)
    fixed = [x.to(device) for x in excerpts(held, starts, length, settings)]
    for step in run.steps("vocoder"):
        g = seed_update(flags.seed, step)
        starts = torch.randint(len(sound) - length, (flags.batch,), generator=g)
        batch = excerpts(sound, starts.tolist(), length, settings)
        batch = with_pairs(batch, pairs, settings, g) if pairs else batch
        mel, magnitude, wavs = (x.to(device) for x in batch)
        rate, log = learning_rate(step, flags.lr, 100, flags.max_iters), net(mel)
        terms = dict(zip(("log_loss", "loss"), losses(log, magnitude)))
        if flags.adversarial:
            more, hinge = adversarial_losses(critics, log, wavs, net, optimiser, rate, step)
            terms |= more
        weights = LOSS_WEIGHTS if flags.adversarial else dict.fromkeys(terms, 1.0)
        sum(weights[name] * term for name, term in terms.items()).backward()
        terms |= dict(hinge=hinge) if flags.adversarial else {}
        terms["grad_norm"] = optimise(optimiser, [rate, rate], step)
        ema_update(ema, net, step, 0.995)

        def report():
            with torch.no_grad():
                log = ema(fixed[0])
                log_loss, loss = losses(log, fixed[1])
                heard = spectral_loss(ema.sound(log), fixed[2])
            return dict(held_log_loss=float(log_loss), held_loss=float(loss), held_spectral_loss=float(heard))

        def save():
            half = {name: weight.half() for name, weight in ema.state_dict().items()}
            save_torch(flags.out / "vocoder.pt", dict(format=FORMAT, mel=asdict(settings), net=half))
        run.finish(step, [terms], report, save)
    print(f"wrote {flags.out / 'vocoder.pt'}; hear it: sample.py --vocoder {flags.out / 'vocoder.pt'}")


if __name__ == "__main__":
    cli(main)
