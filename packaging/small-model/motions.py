"""Renders videos of known motion from photographs, many at a time, on the GPU.

A video begins with the crop itself. Each motion has one speed, because a prompt names none. Whatever is random in an
effect (where flakes fall, how ripples run) is a function of the noise that the model starts from, its first channel:
`plane` `[B, T, H/8, W/8]`. The noise stays Gaussian, and the model can learn which flake comes of which noise instead of
the average over all flakes.
"""

import math

import torch
import torch.nn.functional as F

FRAMES = 81
CELL = 8  # pixels of a latent
PAN = 0.6  # pixels of a frame
ZOOM, APPROACH, AWAY = 0.25, 0.10, 0.22  # by the last frame
TURN = math.radians(9)
MARGIN = 1.5  # how much wider than a frame a canvas is


def camera(motions, progress):
    """Returns the affine maps `[T, 2, 3]` from pixels of a frame to pixels of the first one, both from the centre."""
    scale, angle = torch.ones_like(progress), torch.zeros_like(progress)
    shift = torch.zeros(len(progress), 2, device=progress.device)
    steps = progress * (FRAMES - 1)
    for motion in motions:
        match motion:
            case "closer":
                scale = scale / (1 + ZOOM * progress)
            case "away":
                scale = scale * (1 + AWAY * progress)
            case "approach":
                scale = scale / (1 + APPROACH * progress)
            case "left" | "right":
                shift[:, 0] += PAN * steps * (1 if motion == "right" else -1)
            case "up" | "down":
                shift[:, 1] += PAN * steps * (1 if motion == "down" else -1)
            case "clockwise" | "anticlockwise":
                # A picture that turns clockwise shows at each place what was anticlockwise of it.
                angle = angle + TURN * progress * (-1 if motion == "clockwise" else 1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return torch.cat([linear, shift[:, :, None]], dim=2)


def pixels(size, device):
    """Returns the pixels `[H, W, 2]` as x and y from the centre."""
    h, w = size
    y, x = torch.meshgrid(torch.arange(h, device=device) - (h - 1) / 2, torch.arange(w, device=device) - (w - 1) / 2,
                          indexing="ij")
    return torch.stack([x, y], dim=-1)


def smooth(plane, sigma):
    """Blurs `[B, 1, H, W]`, and brings it back to unit deviation."""
    radius = math.ceil(2.5 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=plane.device) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    norm = kernel.pow(2).sum()
    blurred = F.conv2d(F.conv2d(plane, kernel.view(1, 1, 1, -1), padding=(0, radius)),
                       kernel.view(1, 1, -1, 1), padding=(radius, 0))
    return blurred / norm


def stamp(impulses, kernel):
    """Puts a copy of `kernel` `[k, k']` at the middle of every cell of `[B, h, w]`, times the value of the cell."""
    kh, kw = kernel.shape
    out = F.conv_transpose2d(impulses[:, None], kernel[None, None], stride=CELL)
    top, left = (kh - CELL) // 2, (kw - CELL) // 2
    return out[:, 0, top:top + CELL * impulses.shape[1], left:left + CELL * impulses.shape[2]]


def ramp(frames, device, length):
    """Returns how far an effect has set in at each frame, `[T]`: it takes `length` frames."""
    return (torch.arange(frames, device=device) / length).clamp(max=1)


def snow(plane, frames, amount):
    """Returns the share of white `[B, T, H, W]`. Flakes fall two pixels a frame, a cell a latent frame; those that come
    in at the top belong to the noise of the top row at that time."""
    later = plane.shape[1] - 1
    cells = torch.cat([plane[:, 1:, 0].flip(1), plane[:, 0]], dim=1)
    axis = torch.arange(-8, 8, device=plane.device) + 0.5
    dot = torch.exp(-0.5 * (axis / 2.2) ** 2)
    layer = stamp(((cells - 1.4) * 1.5).clamp(0, 1), dot[:, None] * dot[None])
    h = plane.shape[2] * CELL
    start = later * CELL - 2 * torch.arange(frames, device=plane.device)
    rows = start[:, None] + torch.arange(h, device=plane.device)[None]
    return layer[:, rows.clamp(min=0)] * amount.view(1, -1, 1, 1)


def rain(plane, frames, amount):
    """Returns the share of white `[B, T, H, W]`. Streaks last a latent frame and fall eight pixels a frame."""
    b, t, h, w = plane.shape
    along = torch.exp(-0.5 * ((torch.arange(-12, 12, device=plane.device) + 0.5) / 6.0) ** 4)
    across = torch.exp(-0.5 * ((torch.arange(-4, 4, device=plane.device) + 0.5) / 0.9) ** 2)
    streaks = stamp(((plane - 1.5) * 2).clamp(0, 1).flatten(0, 1), along[:, None] * across[None])
    streaks = streaks.view(b, t, h * CELL, w * CELL)
    frame = torch.arange(frames, device=plane.device)
    group, place = (frame + 3) // 4, (frame + 3) % 4
    falls = torch.round(8 * (place - 1.5)).long()
    rows = torch.arange(h * CELL, device=plane.device)[None] - falls[:, None]
    inside = (rows >= 0) & (rows < h * CELL)
    layer = streaks[:, group[:, None], rows.clamp(0, h * CELL - 1)] * inside[None, :, :, None]
    return 0.6 * layer * amount.view(1, -1, 1, 1)


def ripples(plane, frames, amount):
    """Returns displacements `[B, T, H, W, 2]` in pixels: every place sways, and waves run along."""
    size = [CELL * n for n in plane.shape[2:]]
    phase = 1.2 * math.pi * F.interpolate(smooth(plane[:, :1], 2.5), size=size, mode="bilinear")[:, 0]
    phase = phase[:, None] + (2 * math.pi / 32) * torch.arange(frames, device=plane.device).view(1, -1, 1, 1)
    return 2.5 * amount.view(1, -1, 1, 1, 1) * torch.stack([phase.sin(), phase.cos()], dim=-1)


def haze(plane, frames, amount):
    """Returns the share of haze `[B, T, H, W]`, which drifts to the right two pixels a frame."""
    cells = torch.cat([plane[:, 1:, :, 0].permute(0, 2, 1).flip(2), plane[:, 0]], dim=2)[:, None]
    later, w = plane.shape[1] - 1, plane.shape[3] * CELL
    layer = F.interpolate(smooth(cells, 2.5), scale_factor=CELL, mode="bilinear")[:, 0]
    layer = (0.55 + 0.3 * layer).clamp(0, 1)
    start = later * CELL - 2 * torch.arange(frames, device=plane.device)
    columns = (start[:, None] + torch.arange(w, device=plane.device)[None]).clamp(min=0)
    return 0.75 * layer[:, :, columns].permute(0, 2, 1, 3) * amount.view(1, -1, 1, 1)


def light(motions, progress, size, device):
    """Returns the factor `[T, 3, 1 or H, 1 or W]` that fading, warming and a passing shadow put on the picture."""
    gain = torch.ones(len(progress), 3, 1, 1, device=device)
    u = progress.view(-1, 1, 1, 1)
    for motion in motions:
        if motion == "fade":
            gain = gain * (1 - 0.65 * u)
        elif motion == "warm":
            gain = gain * (1 + u * torch.tensor([0.25, 0.0, -0.45], device=device).view(1, 3, 1, 1))
        elif motion == "shadow":
            w = size[1]
            x = torch.arange(w, device=device).view(1, 1, 1, -1) / w
            place = -0.35 + 1.7 * u
            gain = gain * (1 - 0.6 * torch.exp(-0.5 * ((x - place) / 0.16) ** 4))
    return gain


def render(canvas, motions, plane, size, frames=FRAMES, start=0):
    """Renders one video for each canvas, `frames` frames from frame `start` on.

    `canvas` `[B, 3, H', W']` in 0..1 are photographs at the scale of the first frame, the frame in their middle;
    `motions` are B lists; `plane` is the first channel of the noise. Returns `[B, 3, T, H, W]` in -1..1.
    """
    device = canvas.device
    last = start + frames
    progress = torch.arange(start, last, device=device) / (FRAMES - 1)
    grid = pixels(size, device)
    grid = torch.cat([grid, torch.ones_like(grid[..., :1])], dim=-1)
    maps = torch.stack([camera(m, progress) for m in motions])
    places = torch.einsum("bfij,hwj->bfhwi", maps, grid)
    chosen = {name: [i for i, m in enumerate(motions) if name in m] for name in ("ripples", "snow", "rain", "haze")}
    if rows := chosen["ripples"]:
        places[rows] += ripples(plane[rows], last, ramp(last, device, 8))[:, start:]
    half = torch.tensor([canvas.shape[3] / 2, canvas.shape[2] / 2], device=device)
    b, (h, w) = len(canvas), size
    video = F.grid_sample(canvas, (places / half).reshape(b, frames * h, w, 2), mode="bicubic",
                          padding_mode="reflection", align_corners=False)
    video = video.view(b, 3, frames, h, w).clamp(0, 1)
    for i, m in enumerate(motions):
        video[i] *= light(m, progress, size, device).permute(1, 0, 2, 3)
    for name, layer, colour, length in (("haze", haze, 0.85, 48), ("snow", snow, 1.0, 12), ("rain", rain, 0.9, 8)):
        if rows := chosen[name]:
            share = layer(plane[rows], last, ramp(last, device, length))[:, None, start:]
            video[rows] = video[rows] * (1 - share) + colour * share
    return video.clamp(0, 1) * 2 - 1


def cut(photograph, size, rng, jitter=True, turn=True, view=MARGIN * 320):
    """Cuts a canvas `[3, MARGIN * H, MARGIN * W]` at a random place and scale out of `[3, H', W']` in 0..1.

    `jitter` mirrors it and changes its colours; `turn` allows quarter turns, which teach the autoencoder alone. At the
    widest, `view` pixels of the canvas would show the whole width of the photograph.
    """
    _, ph, pw = photograph.shape
    h, w = (2 * round(MARGIN * n / 2) for n in size)
    widest = min(pw / w, ph / h, max(1.0, pw / view))
    scale = widest * math.exp(rng.uniform(math.log(0.5), 0.0))
    ch, cw = (min(round(n * scale), m) for n, m in ((h, ph), (w, pw)))
    top, left = rng.randint(0, ph - ch), rng.randint(0, pw - cw)
    piece = photograph[:, top:top + ch, left:left + cw]
    if turn and rng.random() < 0.25:
        piece = piece.transpose(1, 2)
    canvas = F.interpolate(piece[None], size=(h, w), mode="bicubic", antialias=True)[0].clamp(0, 1)
    if not jitter:
        return canvas
    if rng.random() < 0.5:
        canvas = canvas.flip(2)
    grey = canvas.mean(0, keepdim=True)
    canvas = grey + (canvas - grey) * rng.uniform(0.5, 1.4)
    gain = torch.tensor([rng.uniform(0.85, 1.15) for _ in range(3)], device=canvas.device).view(3, 1, 1)
    canvas = (canvas * gain * rng.uniform(0.75, 1.15)).clamp(0, 1) ** rng.uniform(0.8, 1.25)
    return canvas[rng.sample(range(3), 3)] if rng.random() < 0.1 else canvas


def visible(motions, size, frames=FRAMES, device="cpu"):
    """Returns where a true frame shows what the first one shows, `[T, H, W]`: elsewhere a model has to guess."""
    grid = pixels(size, device)
    grid = torch.cat([grid, torch.ones_like(grid[..., :1])], dim=-1)
    progress = torch.arange(frames, device=device) / (FRAMES - 1)
    places = torch.einsum("fij,hwj->fhwi", camera(motions, progress), grid)
    edge = torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2], device=device)
    return (places.abs() <= edge).all(-1)
