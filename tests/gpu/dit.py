"""The diffusion transformers of Wan2.1 and Wan2.2 in plain PyTorch, on made-up weights, several precisions side by side.

Those of Wan2.2 attend to no picture; else both families' have the same shape.

Weights are made block by block, so that nothing but one block's is ever in memory. The precisions are

- `fp32`: everything, which the others are compared with;
- `bf16`: as the official code runs under autocast: products and attention in bf16, residual stream, norms, gates and
  modulation in f32;
- `fp8`: the same with the blocks' matrices in e4m3, a scale for each output channel, and their inputs rounded to e4m3, a
  scale for each token; attention in bf16, embeddings and head in f32.
"""

import math
import time

import torch
import torch.nn.functional as F
from made_up import dit_tensor, tensor

SIZES = {
    "full": dict(dim=5120, ffn=13824, heads=40, layers=40, text=4096, image=1280),
    "tiny": dict(dim=256, ffn=512, heads=2, layers=3, text=64, image=160),
}
TEXT_ROWS, TEXT_LENGTH, TIME, EPS = 77, 512, 500.0, 1e-6
LIMIT = 448.0


def quantised(x):
    """Rows in e4m3, and their scales."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / LIMIT
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


class Linear:
    """A layer in one of the precisions."""

    def __init__(self, weight, bias, precision):
        self.precision, self.bias = precision, bias
        if precision == "fp32":
            self.weight = weight
        elif precision == "bf16":
            self.weight, self.bias = weight.bfloat16(), bias.bfloat16()
        else:
            self.weight, self.scale = quantised(weight)

    def __call__(self, x):
        if self.precision == "fp32":
            return F.linear(x.float(), self.weight, self.bias)
        if self.precision == "bf16":
            return F.linear(x.bfloat16(), self.weight, self.bias)
        x, scale = quantised(x)
        if x.is_cuda:
            y = torch._scaled_mm(x, self.weight.t(), scale, self.scale.t(), out_dtype=torch.bfloat16)
        else:
            y = (x.float() @ self.weight.float().t() * scale * self.scale.t()).bfloat16()
        return (y.float() + self.bias).bfloat16()


def layer_norm(x, weight=None, bias=None, eps=EPS):
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps)


def rms_norm(x, weight, precise):
    """Over all heads together, rounded as the input is before its weight."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + EPS)
    return (y if precise else y.to(x.dtype).float()) * weight


def rotations(frames, height, width, device):
    """The rotary embedding of each token, complex, `[tokens, 1, 64]`."""
    third = 128 // 6
    pairs = [64 - 2 * third, third, third]
    parts = []
    for axis, (extent, count) in enumerate(zip((frames, height, width), pairs)):
        wave = 10000.0 ** (-torch.arange(count, dtype=torch.float64, device=device) / count)
        angles = torch.outer(torch.arange(extent, dtype=torch.float64, device=device), wave)
        shape = [1, 1, 1, count]
        shape[axis] = extent
        parts.append(angles.view(shape).expand(frames, height, width, count))
    angles = torch.cat(parts, dim=-1).reshape(-1, 1, 64)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotated(x, rotation):
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2)


def attention(q, k, v, heads, precise):
    """Over heads of 128 channels."""
    kind = torch.float32 if precise else torch.bfloat16
    q, k, v = (x.to(kind).view(1, x.shape[0], heads, 128).transpose(1, 2) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).reshape(y.shape[2], -1)


class Timer:
    """Seconds of what runs inside, on the device."""

    def __init__(self, device):
        self.device, self.seconds = device, 0.0

    def wait(self):
        if self.device != "cpu":
            torch.cuda.synchronize()

    def __enter__(self):
        self.wait()
        self.began = time.perf_counter()

    def __exit__(self, *_):
        self.wait()
        self.seconds += time.perf_counter() - self.began


class Dit:
    """One forward for all precisions at once, by the transformer whose weights have this seed."""

    def __init__(self, size, precisions, device, seed=1, image=True, layers=None):
        self.c, self.device, self.seed, self.image = dict(SIZES[size]), device, seed, image
        self.c["layers"] = layers or self.c["layers"]
        self.precisions = precisions
        # These time the computation of the blocks, without the making of their weights.
        self.timers = {p: Timer(device) for p in precisions}
        self.making = Timer(device)

    def get(self, name, *shape):
        with self.making:
            return dit_tensor(name, shape, self.device, self.seed)

    def layer(self, name, rows, columns):
        return self.get(f"{name}.weight", rows, columns), self.get(f"{name}.bias", rows)

    def outer(self, name, rows, columns, precision):
        """A layer that is not of a block: in bf16 in `bf16`, else in f32."""
        return Linear(*self.layer(name, rows, columns), "bf16" if precision == "bf16" else "fp32")

    def time(self):
        """`e` and `e0`, in f32 in all precisions."""
        d = self.c["dim"]
        waves = 10000.0 ** (-torch.arange(128, dtype=torch.float64, device=self.device) / 128)
        sinusoid = torch.cat([torch.cos(TIME * waves), torch.sin(TIME * waves)]).float()[None]
        h = F.silu(F.linear(sinusoid, *self.layer("time_embedding.0", d, 256)))
        e = F.linear(h, *self.layer("time_embedding.2", d, d))
        e0 = F.linear(F.silu(e), *self.layer("time_projection.1", 6 * d, d))
        return e, e0.view(6, d)

    def contexts(self):
        """What the blocks attend to, for each precision: the text and, in families that have one, the picture."""
        d, text_dim = self.c["dim"], self.c["text"]
        text = torch.zeros(TEXT_LENGTH, text_dim, device=self.device)
        text[:TEXT_ROWS] = tensor("input.text", (TEXT_ROWS, text_dim), device=self.device)
        all = {}
        for p in self.precisions:
            up = self.outer("text_embedding.0", d, text_dim, p)
            all[p] = {"": self.outer("text_embedding.2", d, d, p)(F.gelu(up(text), approximate="tanh"))}
        if self.image:
            for p, image in self.images().items():
                all[p]["_img"] = image
        return all

    def images(self):
        """The picture for each precision."""
        d, image_dim = self.c["dim"], self.c["image"]
        image = tensor("input.image", (257, image_dim), device=self.device)
        norm = [self.get(f"img_emb.proj.{i}.{part}", width)
                for i, width in ((0, image_dim), (4, d)) for part in ("weight", "bias")]
        all = {}
        for p in self.precisions:
            i = self.outer("img_emb.proj.1", image_dim, image_dim, p)(layer_norm(image, norm[0], norm[1], 1e-5))
            i = self.outer("img_emb.proj.3", d, image_dim, p)(F.gelu(i))
            all[p] = layer_norm(i, norm[2], norm[3], 1e-5)
        return all

    def forward(self, frames, height, width):
        """Velocities `[16, frames, height, width]` by precision."""
        d, device = self.c["dim"], self.device
        noise = tensor("input.noise", (16, frames, height, width), device=device)
        condition = tensor("input.condition", (16, frames, height, width), device=device)
        mask = torch.zeros(4, frames, height, width, device=device)
        mask[:, 0] = 1
        x = torch.cat([noise, mask, condition])
        h, w = height // 2, width // 2
        tokens = x.view(36, frames, h, 2, w, 2).permute(1, 2, 4, 0, 3, 5).reshape(frames * h * w, 144)
        weight = self.get("patch_embedding.weight", d, 36, 1, 2, 2).view(d, 144)
        bias = self.get("patch_embedding.bias", d)
        outer = {p: "bf16" if p == "bf16" else "fp32" for p in self.precisions}
        streams = {p: Linear(weight, bias, outer[p])(tokens).float() for p in self.precisions}
        e, e0 = self.time()
        contexts = self.contexts()
        rotation = rotations(frames, h, w, device)
        for n in range(self.c["layers"]):
            block = self.block_weights(n)
            for p in self.precisions:
                layers = {name: Linear(*pair, p) for name, pair in block["layers"].items()}
                with self.timers[p]:
                    streams[p] = self.block(streams[p], layers, block, e0, contexts[p], rotation, p != "fp32")
                del layers
        shift, scale = (self.get("head.modulation", 1, 2, d)[0] + e).unbind()
        head = self.layer("head.head", 64, d)
        velocities = {}
        for p, x in streams.items():
            y = F.linear(layer_norm(x) * (1 + scale) + shift, *head)
            y = y.view(frames, h, w, 2, 2, 16).permute(5, 0, 1, 3, 2, 4)
            velocities[p] = y.reshape(16, frames, height, width)
        return velocities

    def block_weights(self, n):
        d, ffn = self.c["dim"], self.c["ffn"]
        name = f"blocks.{n}"
        parts = [f"self_attn.{part}" for part in "qkvo"]
        parts += [f"cross_attn.{part}" for part in ("q", "k", "v", "o")]
        norms = ["self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k"]
        if self.image:
            parts += ["cross_attn.k_img", "cross_attn.v_img"]
            norms += ["cross_attn.norm_k_img"]
        layers = {part: self.layer(f"{name}.{part}", d, d) for part in parts}
        layers["ffn.0"] = self.layer(f"{name}.ffn.0", ffn, d)
        layers["ffn.2"] = self.layer(f"{name}.ffn.2", d, ffn)
        return dict(
            layers=layers,
            norms={norm: self.get(f"{name}.{norm}.weight", d) for norm in norms},
            norm3=(self.get(f"{name}.norm3.weight", d), self.get(f"{name}.norm3.bias", d)),
            modulation=self.get(f"{name}.modulation", 1, 6, d)[0],
        )

    def block(self, x, layers, block, e0, context, rotation, rounded):
        heads, precise = self.c["heads"], not rounded
        norms = block["norms"]
        shift1, scale1, gate1, shift2, scale2, gate2 = (block["modulation"] + e0).unbind()

        h = layer_norm(x) * (1 + scale1) + shift1
        q, k = (rms_norm(layers[f"self_attn.{part}"](h), norms[f"self_attn.norm_{part}"], precise) for part in "qk")
        v = layers["self_attn.v"](h)
        q, k = (rotated(part.view(-1, heads, 128), rotation).flatten(1) for part in (q, k))
        h = attention(q, k, v, heads, precise)
        del q, k, v
        x = x + layers["self_attn.o"](h) * gate1

        h = layer_norm(x, *block["norm3"])
        q = rms_norm(layers["cross_attn.q"](h), norms["cross_attn.norm_q"], precise)
        h = 0
        for suffix, source in context.items():
            k = rms_norm(layers[f"cross_attn.k{suffix}"](source), norms[f"cross_attn.norm_k{suffix}"], precise)
            h = h + attention(q, k, layers[f"cross_attn.v{suffix}"](source), heads, precise)
        x = x + layers["cross_attn.o"](h)

        h = layers["ffn.0"](layer_norm(x) * (1 + scale2) + shift2)
        h = layers["ffn.2"](F.gelu(h, approximate="tanh"))
        return x + h * gate2
