"""The small umT5 and the small CLIP tower, with the official names."""

import math

import torch
import torch.nn.functional as F
from torch import nn

BUCKETS = 32
CLIP_SIDE, CLIP_PATCH = 224, 14
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class T5Norm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def buckets(n):
    """Returns the buckets of all relative positions among `n` tokens, `[n, n]`, query first."""
    distance = torch.arange(n)[None] - torch.arange(n)[:, None]
    half, exact = BUCKETS // 2, BUCKETS // 4
    far = exact + (torch.log(distance.abs().clamp(min=1).float() / exact) / math.log(128 / exact)
                   * (half - exact)).long()
    near = distance.abs() < exact
    return half * (distance > 0) + torch.where(near, distance.abs(), far.clamp(max=half - 1))


class T5Block(nn.Module):
    def __init__(self, dim, heads, inner, ffn):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = T5Norm(dim), T5Norm(dim)
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.attn = nn.ModuleDict({n: linear(dim, inner) for n in "qkv"} | {"o": linear(inner, dim)})
        self.ffn = nn.ModuleDict({"gate": nn.Sequential(linear(dim, ffn)), "fc1": linear(dim, ffn),
                                  "fc2": linear(ffn, dim)})
        self.pos_embedding = nn.ModuleDict({"embedding": nn.Embedding(BUCKETS, heads)})

    def forward(self, x, mask, places):
        h = self.norm1(x)
        q, k, v = (self.attn[n](h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in "qkv")
        bias = self.pos_embedding["embedding"](places).permute(2, 0, 1)[None] + mask
        # umT5 does not divide by the root of the head's width.
        h = ((q @ k.transpose(2, 3) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + self.attn["o"](h)
        h = self.norm2(x)
        return x + self.ffn["fc2"](self.ffn["fc1"](h) * F.gelu(self.ffn["gate"](h), approximate="tanh"))


class T5(nn.Module):
    def __init__(self, rows, dim=64, heads=4, inner=64, ffn=128, layers=2):
        super().__init__()
        self.token_embedding = nn.Embedding(rows, dim)
        self.blocks = nn.ModuleList(T5Block(dim, heads, inner, ffn) for _ in range(layers))
        self.norm = T5Norm(dim)
        with torch.no_grad():
            for block in self.blocks:
                block.attn["q"].weight.div_((inner // heads) ** 0.5)

    def forward(self, ids, lengths):
        """Encodes `ids` `[B, L]`, of which the first `lengths` of each row count; the rest of the result is zero."""
        counted = torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]
        mask = torch.where(counted, 0.0, -1e9)[:, None, None]
        places = buckets(ids.shape[1]).to(ids.device)
        x = self.token_embedding(ids)
        for block in self.blocks:
            x = block(x, mask, places)
        return self.norm(x) * counted[..., None]


class ClipBlock(nn.Module):
    def __init__(self, dim, mlp):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.ModuleDict({"to_qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.Sequential(nn.Linear(dim, mlp), nn.GELU(), nn.Linear(mlp, dim))

    def forward(self, x):
        q, k, v = (t[:, None] for t in self.attn["to_qkv"](self.norm1(x)).chunk(3, dim=2))
        x = x + self.attn["proj"](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + self.mlp(self.norm2(x))


class Visual(nn.Module):
    """One head of 80 channels. The engine runs all blocks but the last, and so does `forward`."""

    def __init__(self, dim=80, mlp=80, layers=2):
        super().__init__()
        tokens = (CLIP_SIDE // CLIP_PATCH) ** 2 + 1
        self.patch_embedding = nn.Conv2d(3, dim, CLIP_PATCH, stride=CLIP_PATCH, bias=False)
        self.cls_embedding = nn.Parameter(0.5 * torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(0.5 * torch.randn(1, tokens, dim))
        self.pre_norm, self.post_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.transformer = nn.Sequential(*(ClipBlock(dim, mlp) for _ in range(layers)))

    def forward(self, pixels):
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_embedding.expand(len(x), -1, -1), x], dim=1) + self.pos_embedding
        return self.transformer[:-1](self.pre_norm(x))


class Clip(nn.Module):
    """The tower stays at its random weights: a random projection of the patches is picture enough."""

    def __init__(self):
        super().__init__()
        self.visual = Visual()
        self.requires_grad_(False)

    def forward(self, pictures):
        """Encodes pictures `[B, 3, H, W]` in -1..1, squeezed to a square as the official code does."""
        x = F.interpolate(pictures, size=(CLIP_SIDE, CLIP_SIDE), mode="bicubic") * 0.5 + 0.5
        mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        return self.visual((x - mean) / std)
