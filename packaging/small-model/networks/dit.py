"""The diffusion transformer of Wan2.1 image-to-video, in any size with heads of 128 channels.

Modules are named so that `state_dict` has the names of the official files.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

HEAD = 128
EPS = 1e-6


def rotary(grid, device):
    """Returns the rotary embedding `[tokens, 64]` of a grid (frames, rows, columns) of tokens, as complex numbers."""
    parts = []
    side = 2 * (HEAD // 6)
    for axis, (extent, width) in enumerate(zip(grid, (HEAD - 2 * side, side, side))):
        rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        angle = torch.outer(torch.arange(extent, dtype=torch.float64, device=device), rate)
        shape = [1, 1, 1, angle.shape[1]]
        shape[axis] = extent
        parts.append(angle.view(shape).expand(*grid, -1))
    angle = torch.cat(parts, dim=-1).flatten(0, 2)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(x, rope):
    """Rotates the pairs of neighbouring channels of `x` `[B, heads, tokens, 128]` by complex numbers of length one."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


def sinusoid(t, width):
    """Returns the embedding `[B, width]` of timesteps 0..1000."""
    rate = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64, device=t.device) / (width // 2))
    angle = torch.outer(t.double(), rate)
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()


class RmsNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), EPS)


def heads(x):
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


class SelfAttention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RmsNorm(dim), RmsNorm(dim)

    def forward(self, x, rope):
        q, k = rotate(heads(self.norm_q(self.q(x))), rope), rotate(heads(self.norm_k(self.k(x))), rope)
        return self.o(F.scaled_dot_product_attention(q, k, heads(self.v(x))).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attends to the text and to the picture's tokens, each with a softmax of its own.

    The official context has 512 rows, all but the prompt's own being equal. Here one such row stands for all of them:
    the logarithm of their number, `weight`, is added to its logit.
    """

    def __init__(self, dim):
        super().__init__()
        self.q, self.k, self.v, self.o, self.k_img, self.v_img = (nn.Linear(dim, dim) for _ in range(6))
        self.norm_q, self.norm_k, self.norm_k_img = RmsNorm(dim), RmsNorm(dim), RmsNorm(dim)

    def forward(self, x, text, weight, image):
        q = heads(self.norm_q(self.q(x)))
        logits = q @ heads(self.norm_k(self.k(text))).transpose(2, 3) / math.sqrt(HEAD)
        shares = (logits.float() + weight[:, None, None]).softmax(-1).to(q.dtype)
        mixed = shares @ heads(self.v(text))
        mixed = mixed + F.scaled_dot_product_attention(
            q, heads(self.norm_k_img(self.k_img(image))), heads(self.v_img(image)))
        return self.o(mixed.transpose(1, 2).flatten(2))


def modulated(x, shift, scale):
    """Returns the norm of `x`, scaled and shifted, in the type in which the next layer computes."""
    x = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class Block(nn.Module):
    def __init__(self, dim, ffn):
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) * dim ** -0.5)
        self.self_attn = SelfAttention(dim)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = CrossAttention(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn), nn.GELU(approximate="tanh"), nn.Linear(ffn, dim))

    def forward(self, x, e0, rope, text, weight, image):
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + e0).float().chunk(6, dim=1)
        x = torch.addcmul(x, gate1, self.self_attn(modulated(x, shift1, scale1), rope).float())
        x = x + self.cross_attn(self.norm3(x), text, weight, image)
        return torch.addcmul(x, gate2, self.ffn(modulated(x, shift2, scale2)).float())


class ImageEmbedding(nn.Module):
    def __init__(self, image_dim, dim):
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(image_dim), nn.Linear(image_dim, image_dim), nn.GELU(),
                                  nn.Linear(image_dim, dim), nn.LayerNorm(dim))

    def forward(self, x):
        return self.proj(x)


class Head(nn.Module):
    def __init__(self, dim, outputs):
        super().__init__()
        self.head = nn.Linear(dim, 4 * outputs)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) * dim ** -0.5)

    def forward(self, x, e):
        shift, scale = (self.modulation + e[:, None]).float().chunk(2, dim=1)
        return self.head(modulated(x, shift, scale))


class Dit(nn.Module):
    """Predicts the velocity, noise minus latents, of `[B, 16, T, H, W]` at timestep `[B]`, 1000 for pure noise."""

    def __init__(self, dim=256, ffn=640, layers=4, text_dim=64, image_dim=80, freq_dim=256, text_len=512):
        super().__init__()
        self.config = dict(dim=dim, ffn_dim=ffn, freq_dim=freq_dim, in_dim=36, out_dim=16, num_heads=dim // HEAD,
                           num_layers=layers, eps=EPS, text_len=text_len)
        self.patch_embedding = nn.Conv3d(36, dim, (1, 2, 2), stride=(1, 2, 2))
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"),
                                            nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.img_emb = ImageEmbedding(image_dim, dim)
        self.blocks = nn.ModuleList(Block(dim, ffn) for _ in range(layers))
        self.head = Head(dim, 16)
        self.ropes = {}
        self.initialise()

    @torch.no_grad()
    def initialise(self):
        dim = self.config["dim"]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.zeros_(self.patch_embedding.bias)
        nn.init.normal_(self.time_embedding[0].weight, std=0.02)
        nn.init.normal_(self.time_projection[1].weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)
        # Gates begin at one. Queries and keys begin with a constant part, so that heads prefer what lies at the same
        # place of the picture, in whatever frame: the even ones near, the odd ones in a wider neighbourhood. To look
        # for that from random weights would take a good part of a short training.
        side = 2 * (HEAD // 6)
        place = torch.zeros(HEAD)
        place[HEAD - 2 * side::2] = 1.0
        for n, block in enumerate(self.blocks):
            block.modulation[:, [2, 5]] += 1.0
            for h in range(dim // HEAD):
                rows = slice(h * HEAD, (h + 1) * HEAD)
                size = 1.0 if (n + h) % 2 == 0 else 0.3
                for layer in (block.self_attn.q, block.self_attn.k):
                    layer.bias[rows] += size * place
            block.self_attn.norm_q.weight *= 1.5
            block.self_attn.norm_k.weight *= 1.5
            block.self_attn.o.weight *= 0.5
            block.cross_attn.o.weight *= 0.5
            block.ffn[2].weight *= 0.5

    def rope(self, grid, device):
        key = (*grid, str(device))
        if key not in self.ropes:
            self.ropes[key] = rotary(grid, device)
        return self.ropes[key]

    def context(self, text, lengths):
        """Embeds text `[B, L, text_dim]`, of which `lengths` rows count; returns the rows, an empty one at the end,
        and what is to be added to their logits."""
        b, n = text.shape[:2]
        rows = torch.cat([text, text.new_zeros(b, 1, text.shape[2])], dim=1)
        counted = torch.arange(n + 1, device=text.device)[None] < lengths[:, None]
        weight = torch.where(counted, 0.0, float("-inf"))
        weight[:, n] = torch.log(self.config["text_len"] - lengths.float())
        return self.text_embedding(rows * torch.cat([counted[:, :n], counted.new_ones(b, 1)], 1)[..., None]), weight

    def forward(self, x, y, t, text, lengths, image):
        """`y` `[B, 20, T, H, W]` is the conditioning, `image` `[B, 257, image_dim]` what CLIP says of the picture."""
        b, _, frames, h, w = x.shape
        grid = (frames, h // 2, w // 2)
        tokens = self.patch_embedding(torch.cat([x, y], dim=1)).flatten(2).transpose(1, 2).float()
        with torch.autocast(x.device.type, enabled=False):
            e = self.time_embedding(sinusoid(t, self.config["freq_dim"]))
            e0 = self.time_projection(e).unflatten(1, (6, -1))
        rope, (text, weight), image = self.rope(grid, x.device), self.context(text, lengths), self.img_emb(image)
        for block in self.blocks:
            tokens = block(tokens, e0, rope, text, weight, image)
        out = self.head(tokens, e).float().view(b, *grid, 2, 2, 16)
        return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(b, 16, frames, h, w)


def conditioning(latents):
    """Returns `[B, 20, T, H, W]`: the mask of the frame that is given, and the latents of picture and grey frames."""
    mask = latents.new_zeros(latents.shape[0], 4, *latents.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], dim=1)
