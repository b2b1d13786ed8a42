"""One training run: its networks, its clock, its checkpoints and its curves."""

import contextlib
import io
import json
import random
import time
from pathlib import Path

import torch

import pool
from networks.dit import Dit
from networks.encoders import T5, Clip
from networks.vae import Vae
from tokenizer import Tokenizer, make

# A checkpoint is cut into files of this size, so that it passes where large files do not.
PART = 15 << 20
CHECKPOINT_EVERY = 60.0
WARM_UP = 60  # steps
DECAY = 0.998


class Run:
    """What the stages share. `seconds` limits this run, `budget` each stage over all runs that go on from it."""

    def __init__(self, arguments):
        self.out, self.toy = Path(arguments.out), arguments.toy
        self.photographs = arguments.data
        self.device = torch.device(arguments.device)
        self.budget = {"vae": arguments.vae_seconds, "dit": arguments.dit_seconds}
        self.ends = time.monotonic() + arguments.seconds
        self.compile = arguments.compile
        self.size = self.scale((192, 320), (64, 96))
        self.frames = self.scale(81, 9)
        (self.out / "local").mkdir(parents=True, exist_ok=True)

        torch.manual_seed(arguments.seed)
        self.state = {"elapsed": {"vae": 0.0, "dit": 0.0}, "steps": {"vae": 0, "dit": 0},
                      "seed": arguments.seed, "tokenizer": None, "curves": []}
        loaded = self.read_checkpoint()
        if loaded is None:
            self.state["tokenizer"] = make()
        else:
            self.state = loaded["state"]
        self.tokenizer = Tokenizer(self.state["tokenizer"])
        self.vae, self.clip = Vae(base=8).to(self.device), Clip().to(self.device)
        self.dit, self.t5 = Dit().to(self.device), T5(self.tokenizer.rows).to(self.device)
        self.round_to_file(self.clip)
        if loaded is not None:
            for name, network in self.networks().items():
                network.load_state_dict(loaded[name])
        # A resumed run draws other numbers than the one it resumes, but always the same ones.
        drawn = self.state["seed"] * 1_000_003 + sum(self.state["steps"].values())
        self.rng = random.Random(drawn)
        self.generator = torch.Generator(self.device).manual_seed(drawn)
        self.averages = {}
        self.saved = time.monotonic()
        self.pictures = pool.load_photographs(self.photographs, False, self.device)

    def scale(self, value, toy):
        """Returns `value`, or what a run at toy length has instead."""
        return toy if self.toy else value

    def networks(self):
        return {"vae": self.vae, "clip": self.clip, "dit": self.dit, "t5": self.t5}

    def trained(self, stage):
        return [self.vae] if stage == "vae" else [self.dit, self.t5]

    # The clock

    def spend(self, stage, seconds):
        self.state["elapsed"][stage] += seconds

    def tick(self, stage, seconds):
        """Counts a step."""
        self.spend(stage, seconds)
        self.state["steps"][stage] += 1

    def done(self, stage):
        """Returns the part of a stage's time that is over."""
        return self.state["elapsed"][stage] / self.budget[stage]

    def stage_is_over(self, stage):
        return self.done(stage) >= 1

    def over(self, stage):
        return self.stage_is_over(stage) or time.monotonic() > self.ends

    def rate(self, stage):
        """Returns the factor of the learning rates: it rises for a few steps, and falls to a hundredth."""
        return min(1.0, (self.state["steps"][stage] + 1) / WARM_UP) * max(0.01, 1 - self.done(stage) ** 1.5)

    def update(self, stage, loss, optimizers):
        """Takes a step against the loss, at the rate of the moment, and moves the averaged weights."""
        for one in optimizers:
            one.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(stage), 1.0)
        for one in optimizers:
            for group in one.param_groups:
                group.setdefault("full", group["lr"])
                group["lr"] = group["full"] * self.rate(stage)
            one.step()
        self.average(stage)

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    # Averages of the weights

    def parameters(self, stage):
        return [p for network in self.trained(stage) for p in network.parameters()]

    @torch.no_grad()
    def average(self, stage):
        """Moves the averaged weights towards the present ones."""
        parameters = [p.detach() for p in self.parameters(stage)]
        if stage not in self.averages:
            self.averages[stage] = [p.clone() for p in parameters]
        step = self.state["steps"][stage]
        torch._foreach_lerp_(self.averages[stage], parameters, 1 - min(DECAY, (1 + step) / (10 + step)))

    @contextlib.contextmanager
    def averaged(self, stage):
        """Has the averaged weights in the networks meanwhile."""
        own = [p.detach().clone() for p in self.parameters(stage)]
        self.adopt_average(stage)
        try:
            yield
        finally:
            self.put(stage, own)

    @torch.no_grad()
    def put(self, stage, values):
        for p, value in zip(self.parameters(stage), values):
            p.copy_(value)

    def adopt_average(self, stage):
        if stage in self.averages:
            self.put(stage, self.averages[stage])

    @torch.no_grad()
    def round_to_file(self, network):
        """Rounds the weights to bf16, which the files have."""
        for p in network.parameters():
            p.copy_(p.bfloat16().float())

    # Checkpoints

    def parts(self):
        return sorted(self.out.glob("state-*.bin"))

    def read_checkpoint(self):
        parts = self.parts()
        if not parts:
            return None
        whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
        return torch.load(whole, map_location="cpu", weights_only=True)

    def checkpoint_if_due(self, stage, optimizers):
        if time.monotonic() - self.saved > CHECKPOINT_EVERY:
            self.checkpoint(stage, optimizers)

    def checkpoint(self, stage=None, optimizers=()):
        """Writes the weights as `state-*.bin`, and what only helps to go on smoothly into `local`."""
        self.saved = time.monotonic()
        whole = io.BytesIO()
        torch.save({"state": self.state} | {n: m.state_dict() for n, m in self.networks().items()}, whole)
        whole, old = whole.getvalue(), self.parts()
        new = []
        for i in range(0, len(whole), PART):
            new.append(self.out / f"state-{i // PART}.bin")
            temporary = new[-1].with_suffix(".part")
            temporary.write_bytes(whole[i:i + PART])
            temporary.replace(new[-1])
        for part in set(old) - set(new):
            part.unlink()
        if stage:
            temporary = self.out / "local" / "optimizers.part"
            torch.save({"stage": stage, "steps": self.state["steps"][stage], "averages": self.averages.get(stage),
                        "optimizers": [one.state_dict() for one in optimizers]}, temporary)
            temporary.replace(temporary.with_suffix(".pt"))
        self.write_curves()

    def restore_optimizers(self, stage, optimizers):
        """Goes on with the optimizers' state, if it is there and belongs to these weights."""
        path = self.out / "local" / "optimizers.pt"
        if path.exists():
            held = torch.load(path, map_location=self.device, weights_only=True)
            if held["stage"] == stage and held["steps"] == self.state["steps"][stage]:
                if held["averages"] is not None:
                    self.averages[stage] = held["averages"]
                for one, state in zip(optimizers, held["optimizers"]):
                    one.load_state_dict(state)

    # Curves

    def log(self, stage, **values):
        """Adds a point to the curves, and prints it."""
        point = {"stage": stage, "seconds": round(self.state["elapsed"][stage], 1),
                 "step": self.state["steps"][stage], **values}
        self.state["curves"].append(point)
        shown = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in point.items())
        print(shown, flush=True)

    def write_curves(self):
        text = json.dumps(self.state["curves"], indent=None, separators=(",", ":")).replace("},{", "},\n{")
        (self.out / "curves.json").write_text(text + "\n")
