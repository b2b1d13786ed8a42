"""What the small model is judged on: crops of held-out photographs, held-out wordings, and the true videos."""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

SMALL_MODEL = Path(__file__).resolve().parents[2] / "packaging" / "small-model"
sys.path.insert(0, str(SMALL_MODEL))

import generate  # noqa: E402
import motions  # noqa: E402
import pool  # noqa: E402
import prompts  # noqa: E402

SIZE, FRAMES = (192, 320), 81
EFFECTS = ["snow", "rain", "ripples", "light"]
LIGHT = ["fade", "warm"]
TEXTURE = 0.02  # the least mean step between neighbouring pixels; a bare sky shows no motion


@dataclass
class Case:
    """One video that is asked for. `picture` `[3, H, W]` is in -1..1, `kind` is a camera motion or an effect."""

    kind: str
    motions: list
    prompt: str
    seed: int
    picture: torch.Tensor
    canvas: torch.Tensor

    def noise(self, frames=FRAMES):
        return generate.noise(self.seed, SIZE, frames)

    def truth(self):
        """Returns the true video `[3, T, H, W]` in -1..1."""
        return motions.render(self.canvas[None], [self.motions], self.noise()[None, 0], SIZE, FRAMES)[0]

    def visible(self):
        """Returns where the true video shows what the picture shows, `[T, H, W]`."""
        return motions.visible(self.motions, SIZE, FRAMES)


def textured(frame):
    return frame.diff(dim=-1).abs().mean() > 2 * TEXTURE


def draw(photographs, each, seed=2026):
    """Draws `each` cases of every camera motion and effect; the photographs take turns."""
    rng, cases = random.Random(seed), []
    for kind in [*prompts.CAMERA, *EFFECTS] * each:
        photograph = photographs[len(cases) % len(photographs)]
        asked = [rng.choice(LIGHT) if kind == "light" else kind]
        for _ in range(20):
            canvas = pool.canvas([photograph], SIZE, rng, jitter=False, turn=False)
            top, left = ((n - m) // 2 for n, m in zip(canvas.shape[1:], SIZE))
            picture = canvas[:, top:top + SIZE[0], left:left + SIZE[1]] * 2 - 1
            # What is judged is an 8-bit picture, as a user has it.
            picture = ((picture + 1) * 127.5).round() / 127.5 - 1
            if textured(picture):
                break
        cases.append(Case(kind, asked, prompts.wording(asked, rng, held_out=True), len(cases) + 1, picture, canvas))
    return cases
