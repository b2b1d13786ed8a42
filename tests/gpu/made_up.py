"""animd's made-up weights and inputs, by the same formula: see engine/src/synth.

A value depends on the seed, the tensor's name and its position alone. Each is rounded to bf16, in f32 here.
"""

import numpy as np
import torch

MASK = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# How many values are made at a time.
CHUNK = 1 << 26


def signed(value):
    return value - (1 << 64) if value >> 63 else value


def mix(z):
    z = (z ^ z >> 30) * FIRST & MASK
    z = (z ^ z >> 27) * SECOND & MASK
    return z ^ z >> 31


def tensor_seed(seed, name):
    hash = 0xCBF29CE484222325
    for byte in name.encode():
        hash = (hash ^ byte) * 0x100000001B3 & MASK
    return mix(hash ^ mix(seed))


def shifted(z, bits):
    """A logical shift to the right of 64-bit numbers, which torch has with a sign."""
    return (z >> bits).bitwise_and_((1 << 64 - bits) - 1)


def bell(seed, start, count, device):
    """`count` values from position `start` on, of unit variance, in f32."""
    z = torch.arange(start, start + count, dtype=torch.int64, device=device)
    z.mul_(signed(STEP)).add_(signed(seed))
    z.bitwise_xor_(shifted(z, 30)).mul_(signed(FIRST))
    z.bitwise_xor_(shifted(z, 27)).mul_(signed(SECOND))
    z.bitwise_xor_(shifted(z, 31))
    total = z.bitwise_and(0xFFFF)
    for bits in (16, 32, 48):
        total.add_((z >> bits).bitwise_and_(0xFFFF))
    return total.float().sub_(131070.0).mul_(float(np.float32(1.7320508) / np.float32(65536)))


def tensor(name, shape, mean=0.0, deviation=1.0, seed=1, device="cpu"):
    """The tensor of this name. `mean` and `deviation` are numbers, or tensors that fit the shape."""
    count = int(np.prod(shape, dtype=np.int64))
    out = torch.empty(count, dtype=torch.float32, device=device)
    seed = tensor_seed(seed, name)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        out[start : start + size] = bell(seed, start, size, device)
    if isinstance(deviation, (int, float, np.floating)):
        deviation = float(np.float32(deviation))
    if isinstance(mean, (int, float, np.floating)):
        mean = float(np.float32(mean))
    # Two roundings, as in Rust: no fused product and sum.
    out = out.view(shape).mul_(deviation).add_(mean)
    return out.bfloat16().float()


def keep(shape, gain=1.0):
    """A deviation that keeps the size of what goes through, in f32 arithmetic."""
    return np.float32(gain) / np.sqrt(np.float32(np.prod(shape[1:], dtype=np.int64)))


def time_columns(width):
    """The deviations of the time embedding's columns: the fast sinusoids count for little."""
    half = width // 2
    columns = np.empty(width, np.float32)
    for j in range(width):
        frequency = np.float32(10000) ** np.float32(-np.float32(j % half) / np.float32(half))
        columns[j] = np.float32(1) / (np.float32(1) + (np.float32(100) * frequency) ** 2) + np.float32(0.05)
    total = np.float32(0)
    for column in columns:
        total = np.float32(total + column * column)
    return np.float32(1.5) * columns / np.sqrt(total)


def attention_norm(features, outliers):
    """The sizes of the norms of queries or keys: heads from broad to sharp, and keys with two larger channels in each."""
    sharpness = np.array([1.05, 1.95, 1.3, 1.6], np.float32)
    sizes = sharpness[np.arange(features) // 128 % 4]
    if outliers:
        sizes = np.where(np.isin(np.arange(features) % 128, (17, 94)), sizes * np.float32(5), sizes)
    return torch.from_numpy(sizes)


def dit_tensor(name, shape, device, seed=1):
    """A tensor of a DiT. The second one of a model with two has the next seed."""
    if name.endswith(("norm_q.weight", "norm_k.weight", "norm_k_img.weight")):
        mean = attention_norm(shape[0], not name.endswith("norm_q.weight")).to(device)
        return tensor(name, shape, mean, 0.1, seed, device)
    if name.endswith(("self_attn.k.bias", "self_attn.v.bias")):
        return tensor(name, shape, 0.0, 0.7 if name.endswith("k.bias") else 0.3, seed, device)
    norm = "norm" in name or name.startswith(("img_emb.proj.0", "img_emb.proj.4"))
    mean, deviation = 0.0, None
    if name.endswith("modulation"):
        deviation = np.float32(shape[2]) ** np.float32(-0.5)
    elif name == "time_embedding.0.weight":
        deviation = torch.from_numpy(time_columns(shape[1])).to(device)
    elif name == "time_embedding.2.weight":
        deviation = keep(shape, 1.5)
    elif name == "time_projection.1.weight":
        deviation = keep(shape, 0.25)
    elif name == "time_projection.1.bias":
        deviation = 0.3
    elif name.endswith("bias"):
        deviation = 0.05
    elif norm:
        mean, deviation = 1.0, 0.1
    else:
        deviation = keep(shape)
    return tensor(name, shape, mean, deviation, seed, device)
