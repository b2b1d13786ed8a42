"""Makes videos with the small model in PyTorch, in f32, as `animd-engine generate --sampler distill` does."""

import torch

import pool
from networks.dit import conditioning
from sampling import generate


class Generator:
    """A model's folder on a device."""

    def __init__(self, folder, device="cpu"):
        import export

        networks, self.tokenizer = export.read(folder, device)
        self.vae, self.clip, self.dit, self.t5 = (networks[n] for n in ("vae", "clip", "dit", "t5"))
        self.device = torch.device(device)

    @torch.no_grad()
    def video(self, picture, prompt, noise, frames=81):
        """Returns `[3, T, H, W]` in -1..1 for a picture `[3, H, W]` in -1..1 and noise `[16, t, h, w]`."""
        picture, noise = picture[None].to(self.device), noise[None].to(self.device)
        ids, lengths = (torch.tensor(x, device=self.device) for x in self.tokenizer.encode([prompt]))
        given = conditioning(pool.condition(self.vae, picture, frames))
        latents = generate(self.dit, noise, (given, self.t5(ids, lengths), lengths, self.clip(picture)))
        return self.vae.decode(latents)[0].clamp(-1, 1)


def noise(seed, size, frames=81):
    """Returns the noise that `animd-engine` starts from with `--noise cpu`."""
    return torch.randn(16, *pool.latent_shape(size, frames), generator=torch.Generator().manual_seed(seed))
