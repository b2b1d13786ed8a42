"""Trains the autoencoder."""

import time

import torch
import torch.nn.functional as F

import motions
import pool
import prompts
from networks.vae import LATENT_CHANNELS
from sampling import psnr

CLIP = (160, 192, 17)  # height, width, frames
BATCH = 16
RATE = 2e-3
KL = 1e-4


def draw(pictures, batch, clip, rng, generator, device):
    """Renders short videos from anywhere in the motions; a tenth of them is a picture before grey frames, which is what
    the transformer's conditioning is made of."""
    size, frames = clip[:2], clip[2]
    canvases = torch.stack([pool.canvas(pictures, size, rng) for _ in range(batch)])
    plane = torch.randn(batch, 21, size[0] // 8, size[1] // 8, generator=generator, device=device)
    start = 0 if rng.random() < 0.4 else 4 * rng.randrange((motions.FRAMES - frames) // 4 + 1)
    drawn = [prompts.draw_motions(rng) for _ in range(batch)]
    video = motions.render(canvases, drawn, plane, size, frames, start)
    video[: batch // 10, :, 1:] = 0
    return video


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


def train(run):
    """Trains until the stage's time or the session's time is over, and returns whether the stage is done."""
    vae, device = run.vae, run.device
    clip, batch = run.scale(CLIP, (64, 64, 9)), run.scale(BATCH, 2)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, betas=(0.9, 0.97), weight_decay=1e-4)
    run.restore_optimizers("vae", [optimizer])
    if run.compile_all:
        vae.encoder.compile()
        vae.decoder.compile()
    recent = []
    while not run.over("vae"):
        began = time.monotonic()
        video = draw(run.pictures, batch, clip, run.rng, run.generator, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, quality = loss_of(vae, video, run.generator)
        for group in optimizer.param_groups:
            group["lr"] = RATE * run.rate("vae")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        run.average("vae")
        recent.append((loss.item(), quality.item()))
        run.tick("vae", time.monotonic() - began)
        if len(recent) == run.scale(50, 2):
            mean = torch.tensor(recent).mean(0).tolist()
            run.log("vae", loss=mean[0], first_frame_psnr=mean[1])
            recent = []
        run.checkpoint_if_due("vae", [optimizer])
    if not run.stage_is_over("vae"):
        run.checkpoint("vae", [optimizer])
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
