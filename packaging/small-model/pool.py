"""Photographs, and the pool of encoded videos that the transformer learns from."""

import random
from pathlib import Path

import numpy as np
import torch

import motions
import photographs
import prompts
from networks.dit import conditioning


def load_photographs(folder, held_out, device):
    """Loads the photographs to train with, or those held out, as `[3, H, W]` in 8 bits."""
    from PIL import Image

    chosen = [p["name"] for p in photographs.photographs() if p["held_out"] == held_out]
    read = lambda name: np.asarray(Image.open(Path(folder) / f"{name}.jpg").convert("RGB")).copy()
    return [torch.from_numpy(read(name)).permute(2, 0, 1).contiguous().to(device) for name in chosen]


def canvas(pictures, size, rng, **how):
    return motions.cut(rng.choice(pictures).float() / 255, size, rng, **how)


def latent_shape(size, frames):
    return ((frames - 1) // 4 + 1, size[0] // motions.CELL, size[1] // motions.CELL)


def condition(vae, first, frames):
    """Returns the latents `[B, 16, T, h, w]` of pictures `[B, 3, H, W]` with grey frames after them. They are computed
    without autocast: the engine's are exact, and the transformer reads small differences in them."""
    grey = first.new_zeros(len(first), 3, frames - 1, *first.shape[2:])
    with torch.autocast(first.device.type, enabled=False):
        return vae.encode(torch.cat([first[:, :, None], grey], dim=2).float())


def see(clip, canvases, size, rng):
    """Encodes what CLIP sees: the frame, or a little more, because a picture need not have the frame's shape."""
    grow = [rng.uniform(1.0, 1.2) if rng.random() < 0.5 else 1.0 for _ in size]
    h, w = (2 * round(n * g / 2) for n, g in zip(size, grow))
    top, left = (canvases.shape[2] - h) // 2, (canvases.shape[3] - w) // 2
    return clip(canvases[:, :, top:top + h, left:left + w] * 2 - 1)


class Pool:
    """Encoded videos of one size. The oldest give way to new ones."""

    TOGETHER = 4  # videos of the same picture, which share its conditioning

    def __init__(self, size, capacity, frames, device):
        t, h, w = latent_shape(size, frames)
        self.size, self.capacity, self.frames, self.device = size, capacity, frames, device
        store = torch.bfloat16 if device.type == "cuda" else torch.float32
        make = lambda *shape, dtype=store: torch.empty(capacity, *shape, dtype=dtype, device=device)
        self.latents, self.plane = make(16, t, h, w), make(t, h, w, dtype=torch.float32)
        # The conditioning stays in full precision.
        self.picture, self.seen = make(16, t, h, w, dtype=torch.float32), make(257, 80)
        self.motions = [None] * capacity
        self.filled = self.next = 0

    @torch.no_grad()
    def add(self, vae, clip, pictures, crops, rng, generator):
        """Renders and encodes `TOGETHER` videos of each of `crops` new crops."""
        canvases = torch.stack([canvas(pictures, self.size, rng, turn=False) for _ in range(crops)])
        many = self.TOGETHER * crops
        plane = torch.randn(many, *self.plane.shape[1:], generator=generator, device=self.device)
        drawn = [prompts.draw_motions(rng) for _ in range(many)]
        seen = see(clip, canvases, self.size, rng)
        for i in range(0, many, self.TOGETHER):
            group = slice(i, i + self.TOGETHER)
            wide = canvases[i // self.TOGETHER][None].expand(self.TOGETHER, -1, -1, -1)
            video = motions.render(wide, drawn[group], plane[group], self.size, self.frames)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                latents = vae.encode(video)
            given = condition(vae, video[:1, :, 0], self.frames)
            for j in range(self.TOGETHER):
                at = self.next
                self.latents[at], self.picture[at] = latents[j].to(self.latents.dtype), given[0]
                self.plane[at], self.seen[at] = plane[i + j], seen[i // self.TOGETHER].to(self.seen.dtype)
                self.motions[at] = drawn[i + j]
                self.next = (at + 1) % self.capacity
                self.filled = min(self.filled + 1, self.capacity)

    def batch(self, n, rng, generator):
        """Draws `n` videos: latents, noise, conditioning, what CLIP says, prompts."""
        rows = [rng.randrange(self.filled) for _ in range(n)]
        latents = self.latents[rows].float()
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        noise[:, 0] = self.plane[rows]
        texts = [prompts.NEGATIVE if rng.random() < prompts.NEGATIVE_SHARE else prompts.wording(self.motions[i], rng)
                 for i in rows]
        return latents, noise, conditioning(self.picture[rows]), self.seen[rows].float(), texts


class Judged:
    """A few videos of held-out photographs in held-out wordings, with their true frames."""

    ASKED = [["closer"], ["away"], ["left"], ["right"], ["up"], ["clockwise"], ["snow"], ["ripples"]]

    @torch.no_grad()
    def __init__(self, vae, clip, pictures, size, frames, device):
        rng, generator = random.Random(99), torch.Generator(device).manual_seed(99)
        shape = latent_shape(size, frames)
        canvases = torch.stack([canvas(pictures, size, rng, jitter=False, turn=False) for _ in self.ASKED])
        self.noise = torch.randn(len(self.ASKED), 16, *shape, generator=generator, device=device)
        self.truth = motions.render(canvases, self.ASKED, self.noise[:, 0], size, frames)
        self.given = conditioning(condition(vae, self.truth[:, :, 0], frames))
        self.seen = see(clip, canvases, size, rng)
        self.texts = [prompts.wording(asked, rng, held_out=True) for asked in self.ASKED]
