"""Writes the networks in the official layout, and reads them back."""

import json
from pathlib import Path

import torch

from networks.dit import Dit
from networks.encoders import T5, Clip
from networks.vae import Vae
from tokenizer import Tokenizer

TOTAL = 12_000_000  # bytes that all files together may have
DIT, T5_FILE, VAE = "diffusion_pytorch_model.safetensors", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
WORDS = Path("google", "umt5-xxl", "tokenizer.json")


def bf16(network):
    """Returns the weights in bf16, each with its own storage."""
    return {name: value.detach().to("cpu", torch.bfloat16, memory_format=torch.contiguous_format, copy=True)
            for name, value in network.state_dict().items()}


def write(networks, tokenizer, folder):
    """Writes `networks` (`vae`, `clip`, `dit`, `t5`) and the text of the tokenizer to `folder`, and returns the bytes
    that they take."""
    from safetensors.torch import save_file

    folder = Path(folder)
    (folder / WORDS).parent.mkdir(parents=True, exist_ok=True)
    dit = networks["dit"]
    save_file(bf16(dit), folder / DIT, metadata={"format": "pt"})
    (folder / DIT).chmod(0o644)
    config = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": "i2v", **dit.config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name, file in (("t5", T5_FILE), ("clip", CLIP), ("vae", VAE)):
        torch.save(bf16(networks[name]), folder / file)
    (folder / WORDS).write_text(tokenizer, encoding="utf-8")
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {total / 1e6:.2f} MB")
    if total > TOTAL:
        raise SystemExit(f"{folder} has {total} bytes, which is more than the {TOTAL} that are allowed")
    return total


def read(folder, device="cpu"):
    """Reads a folder that `write` has written; returns the networks in f32 by name, and the tokenizer."""
    from safetensors.torch import load_file

    folder = Path(folder)
    tokenizer = Tokenizer((folder / WORDS).read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text())
    states = {"dit": load_file(folder / DIT)}
    for name, file in (("t5", T5_FILE), ("clip", CLIP), ("vae", VAE)):
        states[name] = torch.load(folder / file, map_location="cpu", weights_only=True)
    networks = {
        "dit": Dit(config["dim"], config["ffn_dim"], config["num_layers"]),
        "t5": T5(tokenizer.rows), "clip": Clip(),
        "vae": Vae(states["vae"]["encoder.conv1.bias"].shape[0]),
    }
    for name, network in networks.items():
        network.load_state_dict({key: value.float() for key, value in states[name].items()})
        network.to(device).eval().requires_grad_(False)
    return networks, tokenizer
