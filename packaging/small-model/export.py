"""Writes the networks in the official layout: the same names, types of file and places."""

import json
from pathlib import Path

import torch

TOTAL = 12_000_000  # bytes that all files together may have


def bf16(network):
    """Returns the weights in bf16, each with its own storage."""
    return {name: value.detach().to("cpu", torch.bfloat16).contiguous().clone()
            for name, value in network.state_dict().items()}


def write(networks, tokenizer, folder):
    """Writes `networks` (`vae`, `clip`, `dit`, `t5`) and the text of the tokenizer to `folder`, and returns the bytes
    that they take."""
    from safetensors.torch import save_file

    folder = Path(folder)
    words = folder / "google" / "umt5-xxl"
    words.mkdir(parents=True, exist_ok=True)
    dit = networks["dit"]
    save_file(bf16(dit), folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    config = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": "i2v", **dit.config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    torch.save(bf16(networks["t5"]), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    clip = folder / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    torch.save(bf16(networks["clip"]), clip)
    torch.save(bf16(networks["vae"]), folder / "Wan2.1_VAE.pth")
    (words / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {total / 1e6:.2f} MB")
    if total > TOTAL:
        raise SystemExit(f"{folder} has {total} bytes, which is more than the {TOTAL} that are allowed")
    return total
