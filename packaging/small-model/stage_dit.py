"""Trains the transformer and the text encoder by flow matching, then on its own four steps."""

import time

import torch

import pool
from muon import Muon
from sampling import SHIFT, SIGMAS, advance, generate, psnr, timestep

# Sizes (height, width) with their share of the batches. The first is small, and makes the beginning fast.
SMALL, SMALL_UNTIL = (128, 224), 0.35
SIZES = {(192, 320): 0.74, (224, 288): 0.08, (256, 384): 0.11, (320, 480): 0.07}
CAPACITY = 4096  # videos of the main size that are kept; of others, as many as take the same room
BATCH = 24  # videos of the main size; of others, as many as have the same number of tokens
RATE, MUON_RATE = 1e-3, 2e-3
# The part of the time that goes into new videos, and the part of the stage from which half of the batches start from
# what the model itself made of the noise in its earlier steps.
FRESH, ROLLOUTS_FROM = 0.25, 0.7
EVALUATE = 100.0  # seconds


class Sizes:
    """The pools, and which of them is next."""

    def __init__(self, run):
        self.run, self.main = run, run.size
        shares = run.scale(SIZES, {run.size: 1.0})
        self.shares = shares
        area = lambda size: size[0] * size[1] / (self.main[0] * self.main[1])
        small = run.scale([SMALL], [])
        count = lambda n, size: max(4, int(n / area(size)))
        self.batch = {size: count(run.scale(BATCH, 2), size) for size in [*shares, *small]}
        self.pools = {size: pool.Pool(size, count(run.scale(CAPACITY, 8) * shares.get(size, 0.3) / SIZES[192, 320], size),
                                      run.frames, run.device)
                      for size in [*shares, *small]}

    def draw(self):
        run = self.run
        if SMALL in self.pools and run.done("dit") < SMALL_UNTIL:
            return SMALL if run.rng.random() < 0.8 else self.main
        return run.rng.choices(list(self.shares), list(self.shares.values()))[0]

    def refill(self, size):
        run = self.run
        self.pools[size].add(run.vae, run.clip, run.pictures, 1, run.rng, run.generator)


def text_of(run, texts):
    ids, lengths = run.tokenizer.encode(texts)
    ids, lengths = torch.tensor(ids, device=run.device), torch.tensor(lengths, device=run.device)
    return run.t5(ids, lengths), lengths


def optimizers(run):
    """Muon for the matrices of the blocks, `AdamW` for everything else."""
    blocks = [p for n, p in run.dit.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in blocks}
    rest = [p for p in [*run.dit.parameters(), *run.t5.parameters()] if id(p) not in chosen]
    return [Muon(blocks, lr=MUON_RATE),
            torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.97), weight_decay=0.01)]


def draw_levels(run, n):
    """Draws noise levels: half from the official schedule's density, half from the four that are used."""
    u = torch.rand(n, generator=run.generator, device=run.device)
    level = SHIFT * u / (1 + (SHIFT - 1) * u)
    four = torch.tensor(SIGMAS, device=run.device)[
        torch.randint(4, (n,), generator=run.generator, device=run.device)]
    return torch.where(torch.rand(n, generator=run.generator, device=run.device) < 0.5, four, level).clamp(min=0.02)


def loss_of(run, size, pools):
    n = pools.batch[size]
    latents, noise, given, seen, texts = pools.pools[size].batch(n, run.rng, run.generator)
    text, lengths = text_of(run, texts)
    context = (given, text, lengths, seen)
    call = lambda x, t: run.dit(x, context[0], t, *context[1:])
    rollout = run.done("dit") > ROLLOUTS_FROM and run.rng.random() < 0.5
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
        if not rollout:
            level = draw_levels(run, n)
            wide = level.view(-1, 1, 1, 1, 1)
            velocity = call((1 - wide) * latents + wide * noise, 1000 * level)
            return (velocity - (noise - latents)).pow(2).mean()
        # From its own earlier steps, the velocity has to lead to the video, whatever went wrong before.
        steps, x = run.rng.randrange(1, 4), noise
        with torch.no_grad():
            for i in range(steps):
                x = advance(x, call(x, timestep(i, n, run.device)), i)
        velocity = call(x, timestep(steps, n, run.device))
        return (velocity - (x - latents) / SIGMAS[steps]).pow(2).mean()


@torch.no_grad()
def judge(run, judged):
    """Returns what four steps of the averaged model give on held-out photographs: dB against the true frames."""
    with run.averaged("dit"):
        text, lengths = text_of(run, judged.texts)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
            latents = generate(run.dit, judged.noise, (judged.given, text, lengths, judged.seen))
        video = torch.cat([run.vae.decode(one[None].float()) for one in latents])
    each = psnr(video, judged.truth).tolist()
    names = ["+".join(asked) for asked in judged.ASKED]
    return {"psnr": sum(each) / len(each), "first_frame": psnr(video[:, :, :1], judged.truth[:, :, :1]).mean().item(),
            "each": {name: round(value, 2) for name, value in zip(names, each)}}


def train(run):
    """Trains until the stage's time or the run's time is over, and returns whether the stage is done."""
    held_out = pool.load_photographs(run.photographs, True, run.device)
    judged = pool.Judged(run.vae, run.clip, held_out, run.size, run.frames, run.device)
    both = optimizers(run)
    run.restore_optimizers("dit", both)
    if run.compile:
        for block in run.dit.blocks:
            block.compile(dynamic=True)
    pools = Sizes(run)
    recent, fresh, spent, evaluated = [], 0.0, 0.0, time.monotonic()
    while not run.over("dit"):
        began = time.monotonic()
        size = pools.draw()
        target = pools.pools[size]
        while fresh < FRESH * spent or target.filled < min(run.scale(32, 4), target.capacity):
            start = time.monotonic()
            pools.refill(size)
            fresh += time.monotonic() - start
            spent += time.monotonic() - start
        step = time.monotonic()
        loss = loss_of(run, size, pools)
        run.update("dit", loss, both)
        recent.append(loss.detach())
        spent += time.monotonic() - step
        run.tick("dit", time.monotonic() - began)
        if len(recent) == run.scale(50, 2):
            run.log("dit", loss=torch.stack(recent).mean().item(), videos=sum(p.filled for p in pools.pools.values()))
            recent = []
        if time.monotonic() - evaluated > run.scale(EVALUATE, 5.0):
            evaluated = time.monotonic()
            run.log("dit", **judge(run, judged))
            run.spend("dit", time.monotonic() - evaluated)
        run.checkpoint_if_due("dit", both)
    run.log("dit", **judge(run, judged))
    if run.stage_is_over("dit"):
        run.adopt_average("dit")
        return True
    run.checkpoint("dit", both)
    return False
