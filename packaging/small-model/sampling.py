"""The four steps of the sampler `distill`, and what the model is measured by while it trains."""

import torch

# The noise levels of the four steps: 1, 3/4, 1/2 and 1/4 with a shift of 5.
SHIFT = 5.0
SIGMAS = tuple(SHIFT * s / (1 + (SHIFT - 1) * s) for s in (1.0, 0.75, 0.5, 0.25))


def advance(x, velocity, i):
    """Takes step `i` of the four: returns the latents at the next noise level."""
    following = SIGMAS[i + 1] if i + 1 < len(SIGMAS) else 0.0
    return x - (SIGMAS[i] - following) * velocity


def timestep(i, batch, device):
    return torch.full((batch,), 1000.0 * SIGMAS[i], device=device)


@torch.no_grad()
def generate(dit, noise, context):
    """Returns the latents that four steps make of `noise`; `context` are the arguments of `dit` beside x and t."""
    x = noise
    y, *rest = context
    for i in range(len(SIGMAS)):
        x = advance(x, dit(x, y, timestep(i, len(x), x.device), *rest), i)
    return x


def psnr(a, b, over=(1, 2, 3, 4), weight=None):
    """Returns the PSNR in dB of `a` against `b`, both in -1..1, over the named axes; `weight` says what counts."""
    error = (a.float().clamp(-1, 1) - b.float()).pow(2) / 4
    if weight is None:
        mean = error.mean(over)
    else:
        weight = weight.expand_as(error)
        mean = (error * weight).sum(over) / weight.sum(over).clamp(min=1)
    return -10 * torch.log10(mean.clamp(min=1e-10))
