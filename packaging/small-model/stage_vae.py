"""Trains the autoencoder."""

import time

import torch
import torch.nn.functional as F

import motions
import pool
import prompts
from muon import Muon
from networks.vae import LATENT_CHANNELS
from sampling import psnr

# Clips (height, width, frames) and how many make a batch: short ones with much picture, and long ones with little.
SHAPES = {(128, 128, 17): 12, (192, 320, 5): 11, (64, 96, 65): 8}
SHARES = (0.5, 0.35, 0.15)
# Rendered clips of each shape that are kept, and how many new ones every so many steps render: the processor, which
# starts the GPU's work, is busier with them than the GPU.
BANK, FRESH, EVERY = 256, 2, 3
VIEW = 320  # pixels that show a photograph's whole width at the finest, as where a user's picture becomes a frame
RATE, MUON_RATE = 2e-3, 3e-3
KL = 1e-4


class Bank:
    """Rendered clips of one shape. The oldest give way to new ones."""

    def __init__(self, run, shape, batch):
        self.run, self.shape, self.batch = run, shape, batch
        h, w, frames = shape
        store = torch.bfloat16 if run.device.type == "cuda" else torch.float32
        self.clips = torch.empty(run.scale(BANK, 8), 3, frames, h, w, dtype=store, device=run.device)
        self.filled = self.next = self.drawn = 0

    def refill(self):
        """Renders clips from anywhere in the motions; a tenth of them is a picture before grey frames, which is what
        the transformer's conditioning is made of."""
        run, (h, w, frames) = self.run, self.shape
        canvases = torch.stack([pool.canvas(run.pictures, (h, w), run.rng, view=VIEW) for _ in range(FRESH)])
        plane = torch.randn(FRESH, *pool.latent_shape((h, w), motions.FRAMES), generator=run.generator,
                            device=run.device)
        start = 0 if run.rng.random() < 0.4 else 4 * run.rng.randrange((motions.FRAMES - frames) // 4 + 1)
        drawn = [prompts.draw_motions(run.rng) for _ in range(FRESH)]
        video = motions.render(canvases, drawn, plane, (h, w), frames, start)
        if run.rng.random() < 0.1:
            video[:, :, 1:] = 0
        for clip in video:
            self.clips[self.next] = clip
            self.next = (self.next + 1) % len(self.clips)
            self.filled = min(self.filled + 1, len(self.clips))

    def draw(self):
        while self.filled < min(2 * self.batch, len(self.clips)):
            self.refill()
        self.drawn += 1
        if self.drawn % EVERY == 0:
            self.refill()
        return self.clips[[self.run.rng.randrange(self.filled) for _ in range(self.batch)]].float()


def edges(x):
    return x.diff(dim=-1), x.diff(dim=-2)


def loss_of(vae, video, generator):
    """Returns the loss and the PSNR of the first frames."""
    mean, log_variance = vae.moments(video)
    mean, log_variance = mean.float(), log_variance.float().clamp(-20, 10)
    drawn = torch.randn(mean.shape, generator=generator, device=mean.device)
    decoded = vae.decode_raw(mean + (0.5 * log_variance).exp() * drawn).float()
    error = decoded - video
    # A picture's first frame has to hold four times as many values a latent as the frames after it.
    weight = torch.ones(video.shape[2], device=video.device)
    weight[0] = 3.0
    weight = (weight / weight.mean()).view(1, 1, -1, 1, 1)
    loss = ((error.abs() + 12 * error.pow(2)) * weight).mean()
    loss = loss + 0.5 * sum((a - b).abs().mean() for a, b in zip(edges(decoded), edges(video)))
    kl = 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).mean()
    return loss + KL * kl, psnr(decoded[:, :, :1], video[:, :, :1]).mean()


@torch.no_grad()
def round_trip(vae, pictures, size, device):
    """Returns the mean PSNR of whole photographs, cut to `size` in their middle."""
    values = []
    for picture in pictures:
        _, h, w = picture.shape
        scale = max(size[0] / h, size[1] / w)
        small = F.interpolate(picture[None].float() / 255, size=(round(h * scale), round(w * scale)), mode="bicubic",
                              antialias=True).clamp(0, 1)
        top, left = (small.shape[2] - size[0]) // 2, (small.shape[3] - size[1]) // 2
        frame = small[:, :, None, top:top + size[0], left:left + size[1]].to(device) * 2 - 1
        values.append(psnr(vae.decode(vae.encode(frame)), frame))
    return torch.cat(values).mean().item()


def optimizers(vae):
    """Muon for the kernels, `AdamW` for everything else."""
    kernels = [p for n, p in vae.named_parameters() if p.ndim >= 4 and n.endswith("weight")]
    chosen = {id(p) for p in kernels}
    rest = [p for p in vae.parameters() if id(p) not in chosen]
    return [Muon(kernels, lr=MUON_RATE), torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.97), weight_decay=1e-4)]


def step(run, bank, both):
    """Takes one step and returns the loss and the PSNR of the first frames, both still on the device."""
    video = bank.draw()
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
        loss, quality = loss_of(run.vae, video, run.generator)
    run.update("vae", loss, both)
    return torch.stack([loss.detach(), quality.detach()])


def train(run):
    """Trains until the stage's time or the run's time is over, and returns whether the stage is done."""
    banks = [Bank(run, shape, batch) for shape, batch in run.scale(SHAPES, {(48, 64, 9): 2}).items()]
    both = optimizers(run.vae)
    run.restore_optimizers("vae", both)
    recent = []
    while not run.over("vae"):
        began = time.monotonic()
        bank = run.rng.choices(banks, SHARES[:len(banks)])[0]
        recent.append(step(run, bank, both))
        if len(recent) == run.scale(50, 2):
            mean = torch.stack(recent).mean(0).tolist()
            run.log("vae", loss=mean[0], first_frame_psnr=mean[1])
            recent = []
        run.tick("vae", time.monotonic() - began)
        run.checkpoint_if_due("vae", both)
    run.synchronize()
    if not run.stage_is_over("vae"):
        run.checkpoint("vae", both)
        return False
    finish(run)
    return True


@torch.no_grad()
def finish(run):
    """Takes the averaged weights as the file has them, in bf16, and brings the latents to the official statistics."""
    run.adopt_average("vae")
    vae, size = run.vae, run.size
    shape = pool.latent_shape(size, run.frames)
    latents = []
    for _ in range(run.scale(24, 2)):
        canvases = pool.canvas(run.pictures, size, run.rng)[None]
        plane = torch.randn(1, *shape, generator=run.generator, device=run.device)
        video = motions.render(canvases, [prompts.draw_motions(run.rng)], plane, size, run.frames)
        latents.append(vae.moments(video)[0].transpose(0, 1).reshape(LATENT_CHANNELS, -1).float())
    latents = torch.cat(latents, dim=1)
    vae.adopt_statistics(latents.mean(1), latents.std(1))
    run.round_to_file(vae)
    held_out = pool.load_photographs(run.photographs, True, run.device)
    run.log("vae", round_trip_held_out=round_trip(vae, held_out, size, run.device),
            round_trip_trained=round_trip(vae, run.pictures, size, run.device))
