"""Wan2.1's umT5, CLIP tower and VAE in plain PyTorch, on made-up weights, in fp32 and bf16.

Of the VAE the first three latent frames are computed: what follows does not change them.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from dit import rms_norm
from made_up import keep, tensor

SIZES = {
    "full": dict(
        t5=dict(dim=4096, rows=256384, heads=64, inner=4096, ffn=10240, layers=24),
        clip=dict(dim=1280, heads=16, mlp=5120, layers=32),
        vae=96,
    ),
    "tiny": dict(
        t5=dict(dim=64, rows=896, heads=4, inner=64, ffn=160, layers=3),
        clip=dict(dim=160, heads=2, mlp=192, layers=3),
        vae=8,
    ),
}
MEAN = [-.7571, -.7089, -.9113, .1075, -.1745, .9653, -.1517, 1.5508, .4134, -.0715, .5517, -.3632, -.1922, -.9497, .2503, -.2921]
DEVIATION = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160]
LATENT_GAIN, VIDEO_GAIN = 2.35, 0.76
# The latent frames of the VAE that are compared, and the video frames that they stand for.
LATENTS, FRAMES = 3, 9


def t5_tensor(name, shape, head, device):
    if name == "token_embedding.weight" or name.endswith("pos_embedding.embedding.weight"):
        return tensor(name, shape, 0.0, 1.0, device=device)
    if "norm" in name:
        return tensor(name, shape, 1.0, 0.1, device=device)
    gain = np.float32(1) / np.sqrt(np.float32(head)) if name.endswith("attn.q.weight") else 1.0
    return tensor(name, shape, 0.0, keep(shape, gain), device=device)


def buckets(n):
    """The bucket of the distance from each query to each key."""
    distances = torch.arange(n)[None, :] - torch.arange(n)[:, None]
    far = distances.abs()
    octave = (far.clamp(min=1).float() / 8).log() / math.log(128 / 8)
    large = (8 + (octave * 8).long()).clamp(max=15)
    return 16 * (distances > 0) + torch.where(far < 8, far, large)


def t5(size, precision, device):
    """The embedding of 512 tokens `[512, dim]`."""
    c = SIZES[size]["t5"]
    kind = torch.float32 if precision == "fp32" else torch.bfloat16
    d, inner, heads, precise = c["dim"], c["inner"], c["heads"], precision == "fp32"

    def get(name, *shape):
        return t5_tensor(name, shape, inner // heads, device).to(kind)

    def norm(x, name):
        return rms_norm(x, get(name, d), precise).to(kind)

    ids = (7919 * torch.arange(512) + 13) % c["rows"]
    x = get("token_embedding.weight", c["rows"], d)[ids.to(device)]
    bucket = buckets(512).to(device)
    for n in range(c["layers"]):
        name = f"blocks.{n}"
        h = norm(x, f"{name}.norm1.weight")
        q, k, v = (F.linear(h, get(f"{name}.attn.{part}.weight", inner, d)).view(512, heads, -1).transpose(0, 1) for part in "qkv")
        bias = get(f"{name}.pos_embedding.embedding.weight", 32, heads)[bucket].permute(2, 0, 1)
        weights = (torch.matmul(q, k.transpose(1, 2)) + bias).float().softmax(dim=-1).to(kind)
        h = torch.matmul(weights, v).transpose(0, 1).reshape(512, inner)
        x = x + F.linear(h, get(f"{name}.attn.o.weight", d, inner))
        h = norm(x, f"{name}.norm2.weight")
        gate = F.gelu(F.linear(h, get(f"{name}.ffn.gate.0.weight", c["ffn"], d)), approximate="tanh")
        h = F.linear(h, get(f"{name}.ffn.fc1.weight", c["ffn"], d)) * gate
        x = x + F.linear(h, get(f"{name}.ffn.fc2.weight", d, c["ffn"]))
    return norm(x, "norm.weight").float()


def clip_tensor(name, shape, device):
    mean, deviation = 0.0, None
    if name == "visual.cls_embedding":
        deviation = 0.5
    elif name == "visual.pos_embedding":
        deviation = 0.4
    elif "norm" in name:
        mean, deviation = (1.0 if name.endswith("weight") else 0.0), 0.1
    elif name.endswith("bias"):
        deviation = 0.05
    elif name.endswith("to_qkv.weight"):
        root = np.sqrt(np.float32(shape[1]))
        rows = [np.float32(1.5) / root if 3 * i < 2 * shape[0] else np.float32(1) / root for i in range(shape[0])]
        deviation = torch.tensor(np.array(rows), device=device)[:, None]
    else:
        deviation = keep(shape)
    # The checkpoint stores these weights in fp16.
    return tensor(name, shape, mean, deviation, device=device).half().float()


def clip(size, precision, device):
    """The 257 tokens of a picture `[257, dim]`."""
    c = SIZES[size]["clip"]
    kind = torch.float32 if precision == "fp32" else torch.bfloat16
    d, heads, mlp = c["dim"], c["heads"], c["mlp"]

    def get(name, *shape):
        return clip_tensor(f"visual.{name}", shape, device).to(kind)

    def layer(x, name, rows, columns):
        return F.linear(x, get(f"{name}.weight", rows, columns), get(f"{name}.bias", rows))

    def norm(x, name):
        weight, bias = (get(f"{name}.{part}", d).float() for part in ("weight", "bias"))
        return F.layer_norm(x.float(), (d,), weight, bias, 1e-5).to(kind)

    pixels = tensor("input.pixels", (1, 3, 224, 224), device=device).to(kind)
    patches = F.conv2d(pixels, get("patch_embedding.weight", d, 3, 14, 14), stride=14).flatten(2)[0].t()
    x = torch.cat([get("cls_embedding", 1, 1, d)[0], patches]) + get("pos_embedding", 1, 257, d)[0]
    x = norm(x, "pre_norm")
    for n in range(c["layers"] - 1):
        name = f"transformer.{n}"
        qkv = layer(norm(x, f"{name}.norm1"), f"{name}.attn.to_qkv", 3 * d, d)
        q, k, v = (part[None] for part in qkv.view(257, 3, heads, d // heads).permute(1, 2, 0, 3))
        h = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).reshape(257, d)
        x = x + layer(h, f"{name}.attn.proj", d, d)
        h = F.gelu(layer(norm(x, f"{name}.norm2"), f"{name}.mlp.0", mlp, d))
        x = x + layer(h, f"{name}.mlp.2", d, mlp)
    return x.float()


def vae_tensor(name, shape, device):
    mean, deviation = 0.0, None
    if name in ("conv1.weight", "conv1.bias"):
        known = np.ones(shape[0], np.float32), np.zeros(shape[0], np.float32)
        known[0][:16] = np.float32(DEVIATION) * np.float32(LATENT_GAIN)
        known[1][:16] = MEAN
        if name == "conv1.bias":
            mean, deviation = torch.from_numpy(known[1]).to(device), 0.05
        else:
            rows = known[0] / np.sqrt(np.float32(np.prod(shape[1:])))
            deviation = torch.from_numpy(rows).to(device).view(-1, 1, 1, 1, 1)
    elif name.endswith("gamma"):
        mean, deviation = 1.0, 0.1
    elif name.endswith("bias"):
        deviation = 0.05
    elif name == "decoder.head.2.weight":
        deviation = keep(shape, VIDEO_GAIN)
    elif "residual" in name:
        deviation = keep(shape, 2.0)
    elif "to_qkv" in name:
        deviation = keep(shape, 1.5)
    else:
        deviation = keep(shape)
    return tensor(name, shape, mean, deviation, device=device)


class Vae:
    """The autoencoder over whole clips: causal convolutions need no memory of earlier chunks then."""

    def __init__(self, size, precision, device):
        self.base, self.device = SIZES[size]["vae"], device
        self.kind = torch.float32 if precision == "fp32" else torch.bfloat16

    def get(self, name, *shape):
        return vae_tensor(name, shape, self.device).to(self.kind)

    def conv(self, x, name, out, *kernel, **how):
        """Over frames and pixels, of which nothing but the past is seen; the extents stay."""
        weight, bias = self.get(f"{name}.weight", out, x.shape[1], *kernel), self.get(f"{name}.bias", out)
        if len(kernel) == 2:
            n = x.shape[2]
            frames = x.transpose(1, 2).flatten(0, 1)
            y = F.conv2d(frames, weight, bias, **how)
            return y.unflatten(0, (1, n)).transpose(1, 2)
        t, h, w = kernel
        return F.conv3d(F.pad(x, (w // 2, w // 2, h // 2, h // 2, how.pop("past", t - 1), 0)), weight, bias, **how)

    def norm(self, x, name, *shape):
        y = x.float()
        y = F.normalize(y, dim=1, eps=1e-12) * x.shape[1] ** 0.5
        return (y * self.get(name, x.shape[1], *shape).float().view(1, -1, 1, 1, 1)).to(self.kind)

    def head(self, x, name, out):
        return self.conv(F.silu(self.norm(x, f"{name}.0.gamma", 1, 1, 1)), f"{name}.2", out, 3, 3, 3)

    def residual(self, x, name, out):
        short = x if x.shape[1] == out else self.conv(x, f"{name}.shortcut", out, 1, 1, 1)
        h = F.silu(self.norm(x, f"{name}.residual.0.gamma", 1, 1, 1))
        h = self.conv(h, f"{name}.residual.2", out, 3, 3, 3)
        h = F.silu(self.norm(h, f"{name}.residual.3.gamma", 1, 1, 1))
        return short + self.conv(h, f"{name}.residual.6", out, 3, 3, 3)

    def attention(self, x, name):
        c, (n, h, w) = x.shape[1], x.shape[2:]
        qkv = self.conv(self.norm(x, f"{name}.norm.gamma", 1, 1), f"{name}.to_qkv", 3 * c, 1, 1)
        q, k, v = qkv[0].flatten(2).permute(1, 2, 0).chunk(3, dim=2)
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        y = y.permute(2, 0, 1).reshape(1, c, n, h, w)
        return x + self.conv(y, f"{name}.proj", c, 1, 1)

    def middle(self, x, name):
        c = x.shape[1]
        x = self.residual(x, f"{name}.0", c)
        return self.residual(self.attention(x, f"{name}.1"), f"{name}.2", c)

    def encode(self, height, width):
        """Normalised latents `[16, 3, height/8, width/8]` of a picture with black frames after it."""
        x = torch.zeros(1, 3, FRAMES, height, width, device=self.device)
        x[0, :, 0] = tensor("input.picture", (3, height, width), 0.0, 0.4, device=self.device)
        widths = [self.base * m for m in (1, 2, 4, 4)]
        x = self.conv(x.to(self.kind), "encoder.conv1", self.base, 3, 3, 3)
        for stage, out in enumerate(widths):
            for block in range(2):
                x = self.residual(x, f"encoder.downsamples.{3 * stage + block}", out)
            if stage < 3:
                name = f"encoder.downsamples.{3 * stage + 2}"
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"{name}.resample.1", out, 3, 3, stride=2)
                if stage > 0:
                    # The first frame stays alone; then each new one is made of two and the one before them.
                    later = self.conv(x, f"{name}.time_conv", out, 3, 1, 1, past=0, stride=(2, 1, 1))
                    x = torch.cat([x[:, :, :1], later], dim=2)
        x = self.head(self.middle(x, "encoder.middle"), "encoder.head", 32)
        mu = self.conv(x, "conv1", 32, 1, 1, 1)[0, :16].float()
        mean, deviation = (torch.tensor(v, device=self.device).view(16, 1, 1, 1) for v in (MEAN, DEVIATION))
        return (mu - mean) / deviation

    def decode(self, frames, height, width):
        """The first frames `[3, 9, 8 height, 8 width]` of a video of so many latent frames."""
        z = tensor("input.latents", (16, frames, height, width), device=self.device)[:, :LATENTS]
        mean, deviation = (torch.tensor(v, device=self.device).view(16, 1, 1, 1) for v in (MEAN, DEVIATION))
        x = self.conv((z * deviation + mean)[None].to(self.kind), "conv2", 16, 1, 1, 1)
        widths = [self.base * m for m in (4, 4, 2, 1)]
        x = self.middle(self.conv(x, "decoder.conv1", widths[0], 3, 3, 3), "decoder.middle")
        for stage, out in enumerate(widths):
            for block in range(3):
                x = self.residual(x, f"decoder.upsamples.{4 * stage + block}", out)
            if stage == 3:
                break
            name = f"decoder.upsamples.{4 * stage + 3}"
            if stage < 2:
                # The first frame stays alone, and the others do not see it.
                later = self.conv(x[:, :, 1:], f"{name}.time_conv", 2 * out, 3, 1, 1)
                later = later.unflatten(1, (2, out)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
                x = torch.cat([x[:, :, :1], later], dim=2)
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = self.conv(x, f"{name}.resample.1", out // 2, 3, 3, padding=1)
        return self.head(x, "decoder.head", 3)[0].float()
