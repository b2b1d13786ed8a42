"""The causal video autoencoder of Wan2.1, with any number of base channels.

Modules are named so that `state_dict` has the names of the official file. Frames go through at once here, whereas the
engine takes them a latent frame at a time; both give the same values, because every layer looks back alone.
"""

import torch
import torch.nn.functional as F
from torch import nn

from . import fused

LATENT_CHANNELS = 16
# What the official model divides its latents by and subtracts from them. The engine does so for every model, which is
# why `adopt_statistics` brings a trained autoencoder's latents to these figures.
LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


def to_frames(x):
    """Returns `[B * T, C, H, W]` of `[B, C, T, H, W]`: a view, where channels lie last."""
    return x.transpose(1, 2).flatten(0, 1)


def to_video(frames, batch):
    """The inverse of `to_frames`."""
    return frames.view(batch, -1, *frames.shape[1:]).transpose(1, 2)


class CausalConv(nn.Conv3d):
    """A convolution whose kernel reaches back in time only. Zeros stand before the first frame.

    It is computed as a convolution of frames whose channels are those of the kernel's frames one after the other: on a
    GPU, convolutions in three dimensions of few channels are several times slower.
    """

    def __init__(self, inputs, outputs, kernel):
        super().__init__(inputs, outputs, kernel, padding=(0, *(k // 2 for k in kernel[1:])))

    def forward(self, x):
        return self.of_taps(taps(x, self.kernel_size[0]))

    def of_taps(self, x):
        """Convolves what `taps` returns."""
        return to_video(F.conv2d(to_frames(x), flat_kernel(self.weight), self.bias, padding=self.padding[1:]), len(x))


def taps(x, count):
    """Returns `[B, count * C, T, H, W]`: for each frame, the frames that a causal kernel reads, the earliest first."""
    if count == 1:
        return x
    padded = F.pad(x, (0, 0, 0, 0, count - 1, 0))
    return torch.cat([padded[:, :, k:k + x.shape[2]] for k in range(count)], dim=1)


def flat_kernel(weight):
    """Returns a kernel `[outputs, inputs, T, H, W]` as one of frames, `[outputs, T * inputs, H, W]`."""
    return weight.transpose(1, 2).flatten(1, 2)


class ChannelNorm(nn.Module):
    """Divides by the root mean square over the channels. `dims` is the number of axes after them in the file."""

    def __init__(self, channels, dims):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))

    def forward(self, x):
        gamma = self.gamma.view(-1, *[1] * (x.ndim - 2))
        inverse = torch.rsqrt((x * x).mean(1, keepdim=True).clamp(min=1e-24))
        return x * inverse.to(x.dtype) * gamma.to(x.dtype)


def activated_conv(norm, conv, x):
    """Returns the causal convolution of the SiLU of the norm of `x`."""
    if x.is_cuda and fused.works():
        return conv.of_taps(fused.activated_taps(x, norm.gamma))
    return conv(F.silu(norm(x)))


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        kernel = (3, 3, 3)
        self.residual = nn.ModuleDict({
            "0": ChannelNorm(inputs, 3), "2": CausalConv(inputs, outputs, kernel),
            "3": ChannelNorm(outputs, 3), "6": CausalConv(outputs, outputs, kernel)})
        self.shortcut = CausalConv(inputs, outputs, (1, 1, 1)) if inputs != outputs else nn.Identity()

    def forward(self, x):
        layers = self.residual
        h = activated_conv(layers["3"], layers["6"], activated_conv(layers["0"], layers["2"], x))
        return self.shortcut(x) + h


class FrameAttention(nn.Module):
    """Every pixel attends to the pixels of its own frame."""

    def __init__(self, channels):
        super().__init__()
        self.norm = ChannelNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        frames = to_frames(x)
        q, k, v = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + to_video(self.proj(mixed.transpose(1, 2).reshape(frames.shape)), len(x))


class Down(nn.Module):
    """Halves height and width and, with `time`, joins pairs of frames. The first frame stands alone."""

    def __init__(self, channels, time):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def forward(self, x):
        x = to_video(self.resample(to_frames(x)), len(x))
        if self.time_conv is None or x.shape[2] == 1:
            return x
        threes = torch.cat([x[:, :, :-2:2], x[:, :, 1:-1:2], x[:, :, 2::2]], dim=1)
        joined = F.conv2d(to_frames(threes), flat_kernel(self.time_conv.weight), self.time_conv.bias)
        return torch.cat([x[:, :, :1], to_video(joined, len(x))], dim=2)


class Up(nn.Module):
    """Doubles the frames with `time`, then height and width. The first frame stays one frame."""

    def __init__(self, channels, time):
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest-exact"),
                                      nn.Conv2d(channels, channels // 2, 3, padding=1))
        self.time_conv = CausalConv(channels, 2 * channels, (3, 1, 1)) if time else None

    def forward(self, x):
        if self.time_conv is not None and x.shape[2] > 1:
            first, rest = x[:, :, :1], self.time_conv(x[:, :, 1:])
            # The first half of the channels is the earlier one of two frames.
            rest = torch.stack(rest.chunk(2, dim=1), dim=3).flatten(2, 3)
            x = torch.cat([first, rest], dim=2)
        return to_video(self.resample(to_frames(x)), len(x))


def middle(channels):
    return nn.Sequential(Residual(channels, channels), FrameAttention(channels), Residual(channels, channels))


class Head(nn.ModuleDict):
    def __init__(self, channels, outputs):
        super().__init__({"0": ChannelNorm(channels, 3), "2": CausalConv(channels, outputs, (3, 3, 3))})

    def forward(self, x):
        return activated_conv(self["0"], self["2"], x)


class Encoder(nn.Module):
    def __init__(self, base):
        super().__init__()
        widths = [base, 2 * base, 4 * base, 4 * base]
        self.conv1 = CausalConv(3, base, (3, 3, 3))
        layers, width = [], base
        for stage, out in enumerate(widths):
            layers += [Residual(width, out), Residual(out, out)]
            width = out
            if stage < 3:
                layers.append(Down(out, time=stage > 0))
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle(width)
        self.head = Head(width, 2 * LATENT_CHANNELS)

    def forward(self, x):
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder(nn.Module):
    def __init__(self, base):
        super().__init__()
        widths = [4 * base, 4 * base, 2 * base, base]
        width = widths[0]
        self.conv1 = CausalConv(LATENT_CHANNELS, width, (3, 3, 3))
        self.middle = middle(width)
        layers = []
        for stage, out in enumerate(widths):
            layers += [Residual(width, out), Residual(out, out), Residual(out, out)]
            width = out
            if stage < 3:
                layers.append(Up(out, time=stage < 2))
                width = out // 2
        self.upsamples = nn.Sequential(*layers)
        self.head = Head(width, 3)

    def forward(self, z):
        return self.head(self.upsamples(self.middle(self.conv1(z))))


class Vae(nn.Module):
    """The autoencoder. Videos are `[B, 3, 1 + 4n, H, W]` in -1..1, latents `[B, 16, 1 + n, H/8, W/8]`."""

    def __init__(self, base):
        super().__init__()
        self.encoder = Encoder(base)
        self.conv1 = CausalConv(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, (1, 1, 1))
        self.conv2 = CausalConv(LATENT_CHANNELS, LATENT_CHANNELS, (1, 1, 1))
        self.decoder = Decoder(base)
        self.register_buffer("mean", torch.tensor(LATENT_MEAN).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(LATENT_STD).view(-1, 1, 1, 1), persistent=False)
        self.initialise()

    @torch.no_grad()
    def initialise(self):
        """Keeps the size of what passes through; blocks begin near the identity."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Residual):
                module.residual["6"].weight *= 0.3

    def moments(self, video):
        """Returns mean and logarithm of the variance of the latents, before normalisation."""
        if video.is_cuda:
            video = video.contiguous(memory_format=torch.channels_last_3d)
        return self.conv1(self.encoder(video)).chunk(2, dim=1)

    def encode(self, video):
        """Returns the normalised means of the latents."""
        return (self.moments(video)[0] - self.mean) / self.std

    def decode(self, latents):
        """Returns the frames of normalised latents. The values may exceed -1..1."""
        return self.decode_raw(latents * self.std + self.mean)

    def decode_raw(self, z):
        return self.decoder(self.conv2(z))

    @torch.no_grad()
    def adopt_statistics(self, mean, std):
        """Rescales the latents from this mean and deviation `[16]` of each channel to the official figures, without
        any change to what is decoded."""
        target_mean, target_std = self.mean.flatten(), self.std.flatten()
        gain = target_std / std
        rows = slice(0, LATENT_CHANNELS)
        self.conv1.weight[rows] *= gain.view(-1, 1, 1, 1, 1)
        self.conv1.bias[rows] = (self.conv1.bias[rows] - mean) * gain + target_mean
        self.conv1.bias[LATENT_CHANNELS:] += 2 * gain.log()
        self.conv2.bias += self.conv2.weight[:, :, 0, 0, 0] @ (mean - target_mean / gain)
        self.conv2.weight /= gain.view(1, -1, 1, 1, 1)
