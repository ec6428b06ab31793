"""F5-TTS (Chen et al. 2024, arXiv 2410.06885): makes a teacher of an official checkpoint, and speaks its way.

    python -m networks.f5 model_1250000.safetensors --flavour v1 --vocab vocab.txt --out f5.pt
    python sample.py --ckpt f5.pt --prompt me.wav --prompt_text "What I say in it." --text "..."
    python distill.py --teacher f5.pt --data my_corpus --steps 1

Once converted, weights rounded to float16, it is a teacher like any other, which continues a recording. How
it reads text, takes a prompt, and finds how long a text will last: speech/f5_text.py.
Needs pip install safetensors for such files, and for Chinese pypinyin rjieba.
"""
from common.cli import BadInput, Parser, cli, need

from pathlib import Path

import torch

from networks.checkpoint import Bundle, save_checkpoint
from speech.audio import MELS
from model import count_parameters
from networks.f5_net import F5, F5Config

# ------------------------------------------------------------------------------------------- official weights

FLAVOURS = {"v0": dict(mask_filler=False, rotary_heads=1),                        # F5TTS_Base, F5TTS_Small
            "v1": {}}                                                             # F5TTS_v1_Base, v1_Small
NAMES = {"timestep.mlp": "time_embed.time_mlp", "text.embed": "text_embed.text_embed", "gamma": "grn.gamma",
         "text.blocks": "text_embed.text_blocks", "beta": "grn.beta", "proj_in": "input_embed.proj",
         "position.conv1": "input_embed.conv_pos_embed.conv1d.0", "adaln_out": "norm_out.linear",
         "position.conv2": "input_embed.conv_pos_embed.conv1d.2", "adaln": "attn_norm.linear",
         "attn.out": "attn.to_out.0", "ff1": "ff.ff.0.0", "ff2": "ff.ff.2"}
SIZES = ("transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.ff.ff.0.0.weight",
         "text_embed.text_embed.weight", "proj_out.weight")                       # these four tell nearly all


def official_names(name):
    """Our parameter -> the official parameters that it consists of; q, k and v are one matrix here."""
    name = f"transformer_{name}" if name.startswith("blocks.") else name
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return [name.replace("qkv", f"to_{part}") for part in "qkv"] if "qkv" in name else [name]


def read_tensors(path):
    """Official file -> its averaged weights {name in the DiT: tensor}. BadInput: absent or no DiT's."""
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such file; expected a checkpoint of F5-TTS, .safetensors or .pt")
    flat = str(path).endswith(".safetensors")
    read = need("safetensors.torch", path, "safetensors").torch.load_file if flat else torch.load
    try:                                        # neither way can run code that is in the file
        file = read(path) if flat else read(path, map_location="cpu", weights_only=True)
        online = "model_state_dict" in file and "ema_model_state_dict" not in file
        items = file.get("ema_model_state_dict", file).items()
    except Exception as problem:                # both libraries raise many types
        reason = " ".join(str(problem).split())[:60]
        raise BadInput(f"{path}: truncated or not a checkpoint of F5-TTS ({reason!r})") from None
    if online:
        raise BadInput(f"{path}: only the online weights of a training run; expected ema_model_state_dict")
    file = {str(k).removeprefix("ema_model."): v for k, v in items
            if torch.is_tensor(v) and v.is_floating_point()}
    file = {k.removeprefix("transformer."): v for k, v in file.items() if k.startswith("transformer.")}
    for name in SIZES:
        if name not in file:
            other = ", not the UNetT of E2-TTS" if any(k.startswith("layers.") for k in file) else ""
            raise BadInput(f"{path}: no tensor {name}: expected F5-TTS's DiT{other}")
        if file[name].dim() != 2 or not file[name].numel():
            raise BadInput(f"{path}: {name} {tuple(file[name].shape)}: expected a matrix")
    return file


def load_network(path, flavour):
    """Official file -> F5 in float32 on the CPU, of the tensors' sizes. BadInput: they do not fit."""
    file = read_tensors(path)
    shape = {name: tuple(tensor.shape) for name, tensor in file.items()}
    (inner, _), (hidden, _), (rows, E), (M, D) = (shape[name] for name in SIZES)
    d = 2 * file.get("rotary_embed.inv_freq", torch.zeros(32)).numel() or 64
    config = F5Config(vocab=rows - 1, mels=M, dim=D, text_dim=E, heads=inner // d, head_dim=d,
                      ff_mult=hidden // D, depth=sum(k.endswith("attn.to_q.weight") for k in file),
                      text_blocks=sum(k.endswith("dwconv.weight") for k in file), **FLAVOURS[flavour])
    try:
        with torch.device("meta"):              # no memory, no initialisation: the file's tensors move in
            model = F5(config)
    except (ValueError, RuntimeError) as problem:
        raise BadInput(f"{path}: no DiT has its sizes ({problem})") from None
    weights, wrong, known = {}, [], {"rotary_embed.inv_freq"}
    for name, ours in model.state_dict().items():
        theirs = official_names(name)
        known.update(theirs)
        want = (1, 1, *ours.shape) if "grn" in theirs[0] else (len(ours) // len(theirs), *ours.shape[1:])
        bad = [f"{k} {shape.get(k, 'missing')}" for k in theirs if shape.get(k) != want]
        if not bad:
            bad = [f"{k} not finite in float16" for k in theirs if not file[k].half().isfinite().all()]
            weights[name] = torch.cat([file[k].float() for k in theirs]).view(ours.shape)
        wrong += bad
    wrong += [f"{name} not known" for name in sorted(set(shape) - known)]
    if wrong:
        more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise BadInput(f"{path}: tensors missing, extra or unusable: {', '.join(wrong[:4])}{more}")
    model.load_state_dict(weights, assign=True)
    return model.eval()


# ---------------------------------------------------------------------------------------------------- convert

EPSS = {5: "0 2 4 8 16 32", 6: "0 2 4 6 8 16 32", 7: "0 2 4 6 8 16 24 32",        # in 1/32
        10: "0 2 4 6 8 12 16 20 24 28 32", 12: "0 2 4 6 8 10 12 14 16 20 24 28 32",
        16: "0 1 2 3 4 5 6 7 8 10 12 14 16 20 24 28 32"}


def epss_times(table):
    """F5-TTS's times 0 ... 1 (n + 1,) for an n in EPSS: the table after sway sampling.

    For any other n it sways equal steps, which makes sample.py's cosine grid.
    """
    t = 1 - torch.cos(torch.pi / 2 * torch.tensor([int(i) / 32 for i in table.split()]))
    t[-1] = 1.0
    return t


def read_vocab(path):
    """vocab.txt, one token a line -> [token]. The first is the space and has to be; BadInput otherwise."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")               # any line end, nothing else
    except (OSError, UnicodeDecodeError) as problem:
        raise BadInput(f"--vocab {path}: cannot be read ({problem})") from None
    vocab = lines[:-1] if lines[-1] == "" else lines
    if not vocab or vocab[0] != " ":
        raise BadInput(f"--vocab {path}: its first line is {vocab[:1]}, not a single space; expected the "
                       "vocab.txt of the checkpoint as published, not stripped")
    return vocab


def convert(path, flavour, vocab, mel="vocos"):
    """Official checkpoint -> Bundle in float32: a teacher that continues a prompt, with a rule for durations.

    vocab: path of its vocab.txt; mel: "vocos" or "bigvgan". BadInput, one line, when anything does not fit.
    """
    known, settings, model = read_vocab(vocab), MELS[mel], load_network(path, flavour)
    if (len(known), settings.n_mels) != (model.config.vocab, model.config.mels):
        raise BadInput(f"--vocab {vocab}: {len(known)} tokens and {settings.n_mels} mels, but {path} has "
                       f"{model.config.vocab} and {model.config.mels}; take its own")
    grids = {str(n): epss_times(table).tolist() for n, table in EPSS.items()}
    contract = dict(kind="teacher", steps=[], grid="cosine", grids=grids, cfg=2.0, prompt="drift")
    record = dict(model=str(path), flavour=flavour, vocab=str(vocab), mel=mel)
    return Bundle(model, None, settings, known, "f5", {}, {}, contract, record)


# ---------------------------------------------------------------------------------------------------- command


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__)
    add = p.add_argument
    add("model", help="official checkpoint: .safetensors, or .pt with the averaged weights")
    add("--flavour", choices=FLAVOURS, required=True, help="v0: F5TTS_Base, F5TTS_Small; v1: F5TTS_v1_Base, "
        "F5TTS_v1_Small. The file cannot tell: names and shapes are the same, and the wrong one speaks noise")
    add("--vocab", required=True, help="the vocab.txt published with that checkpoint, as it is")
    add("--mel", choices=["vocos", "bigvgan"], default="vocos",
        help="the mel it was trained with (default vocos; bigvgan for F5TTS_Base_bigvgan)")
    add("--out", type=Path, default=Path("f5.pt"), help="the teacher to write, a .pt file (default f5.pt)")
    return p.parse_args()


def main():
    flags = arguments()
    out = flags.out
    if out.suffix != ".pt" or out.is_dir():
        raise BadInput(f"--out {out}: expected the name of a .pt file")
    if out.exists() and Path(flags.model).exists() and out.samefile(flags.model):
        raise BadInput(f"--out {out}: is the checkpoint to convert; expected another name")
    b = convert(flags.model, flags.flavour, flags.vocab, flags.mel)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, b)
    total, conditioning = count_parameters(b.model)
    print(f"F5-TTS {flags.flavour}: {total:,} parameters ({conditioning:,} for time), {len(b.vocab)} tokens")
    print(f"wrote {out}; hear it: python sample.py --ckpt {out} --prompt me.wav --prompt_text ... --text ...")


if __name__ == "__main__":
    cli(main)
