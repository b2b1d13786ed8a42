"""One kernel for what stands before a causal convolution: norm, SiLU, and the frames that the kernel reaches back to.

As separate operations they take most of the autoencoder's time on a GPU, because its channels are few: each reads and
writes everything, and the GPU waits for the processor to start them.
"""

import functools

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # on machines without a GPU
    triton = None

TAPS = 3
ROWS = 128  # voxels of one program
EPS = 1e-24

if triton is not None:

    @triton.jit(do_not_specialize=["rows", "frames", "pixels"])
    def forward_kernel(x, gamma, out, rows, frames, pixels, eps: tl.constexpr, channels: tl.constexpr,
                       block: tl.constexpr):
        """x `[rows, C]` -> out `[rows, 3 * C]`: the value of a frame goes to it, to the next and to the one after."""
        row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        column = tl.arange(0, channels)
        inside = (row < rows)[:, None]
        value = tl.load(x + row[:, None] * channels + column[None, :], mask=inside, other=0.0).to(tl.float32)
        inverse = 1.0 / tl.sqrt(tl.maximum(tl.sum(value * value, axis=1) / channels, eps))
        normed = value * inverse[:, None] * tl.load(gamma + column).to(tl.float32)[None, :]
        y = (normed / (1.0 + tl.exp(-normed))).to(out.dtype.element_ty)
        frame = (row // pixels) % frames
        for tap in tl.static_range(3):
            later = 2 - tap
            at = (row + later * pixels)[:, None] * (3 * channels) + tap * channels + column[None, :]
            tl.store(out + at, y, mask=inside & ((frame + later) < frames)[:, None])
            # Nothing was before the first frame.
            own = row[:, None] * (3 * channels) + tap * channels + column[None, :]
            tl.store(out + own, tl.zeros_like(y), mask=inside & (frame < later)[:, None])

    @triton.jit(do_not_specialize=["rows", "frames", "pixels"])
    def backward_kernel(x, gamma, slope, dx, dgamma, rows, frames, pixels, eps: tl.constexpr, channels: tl.constexpr,
                        block: tl.constexpr):
        """slope `[rows, 3 * C]` -> dx `[rows, C]`, and its part of dgamma `[programs, C]`."""
        program = tl.program_id(0)
        row = program.to(tl.int64) * block + tl.arange(0, block)
        column = tl.arange(0, channels)
        inside = (row < rows)[:, None]
        value = tl.load(x + row[:, None] * channels + column[None, :], mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gamma + column).to(tl.float32)[None, :]
        inverse = (1.0 / tl.sqrt(tl.maximum(tl.sum(value * value, axis=1) / channels, eps)))[:, None]
        unit = value * inverse
        frame = (row // pixels) % frames
        dy = tl.zeros_like(value)
        for tap in tl.static_range(3):
            later = 2 - tap
            at = (row + later * pixels)[:, None] * (3 * channels) + tap * channels + column[None, :]
            dy += tl.load(slope + at, mask=inside & ((frame + later) < frames)[:, None], other=0.0).to(tl.float32)
        normed = unit * g
        share = 1.0 / (1.0 + tl.exp(-normed))
        dnormed = dy * share * (1.0 + normed * (1.0 - share))
        tl.store(dgamma + program * channels + column, tl.sum(dnormed * unit, axis=0))
        dunit = dnormed * g
        along = (tl.sum(dunit * unit, axis=1) / channels)[:, None]
        tl.store(dx + row[:, None] * channels + column[None, :],
                 (inverse * (dunit - unit * along)).to(dx.dtype.element_ty), mask=inside)


class ActivatedTaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma):
        b, c, t, h, w = x.shape
        x = x.contiguous(memory_format=torch.channels_last_3d)
        out = torch.empty(b, t, h, w, TAPS * c, dtype=x.dtype, device=x.device)
        rows = b * t * h * w
        gamma = gamma.flatten()
        forward_kernel[(triton.cdiv(rows, ROWS),)](x, gamma, out, rows, t, h * w, EPS, c, ROWS)
        ctx.save_for_backward(x, gamma)
        return out.permute(0, 4, 1, 2, 3)

    @staticmethod
    def backward(ctx, slope):
        x, gamma = ctx.saved_tensors
        b, c, t, h, w = x.shape
        rows = b * t * h * w
        slope = slope.contiguous(memory_format=torch.channels_last_3d)
        dx = torch.empty_like(x)
        programs = triton.cdiv(rows, ROWS)
        dgamma = torch.empty(programs, c, device=x.device)
        backward_kernel[(programs,)](x, gamma, slope, dx, dgamma, rows, t, h * w, EPS, c, ROWS)
        return dx, dgamma.sum(0).to(gamma.dtype).view(c, 1, 1, 1)


@functools.cache
def works():
    """Returns whether the kernels run on this machine, and agree with the operations that they stand for."""
    if triton is None or not torch.cuda.is_available():
        return False
    try:
        with torch.enable_grad(), torch.autocast("cuda", enabled=False):
            return agrees()
    except Exception as error:  # whatever a compiler can raise: training goes on without the kernels
        print(f"without the fused kernels, which is slower: {error}", flush=True)
        return False


def agrees():
    x = torch.randn(2, 16, 5, 6, 7, device="cuda", requires_grad=True)
    gamma = torch.randn(16, 1, 1, 1, device="cuda", requires_grad=True)
    normed = F.silu(x * torch.rsqrt((x * x).mean(1, keepdim=True)) * gamma)
    padded = F.pad(normed, (0, 0, 0, 0, TAPS - 1, 0))
    plain = torch.cat([padded[:, :, k:k + x.shape[2]] for k in range(TAPS)], dim=1)
    ours = ActivatedTaps.apply(x, gamma)
    slope = torch.randn_like(plain)
    pairs = zip(torch.autograd.grad(ours, (x, gamma), slope), torch.autograd.grad(plain, (x, gamma), slope))
    equal = torch.allclose(ours, plain, atol=1e-4) and all(torch.allclose(a, b, atol=1e-3) for a, b in pairs)
    if not equal:
        print("without the fused kernels, which give other values here", flush=True)
    return equal


def activated_taps(x, gamma):
    """Returns `[B, 3 * C, T, H, W]`: SiLU of the norm of `x`, for each frame those of the two frames before it, the
    earliest first. `gamma` is `[C, 1, 1, 1]`; the channels must be a power of two."""
    return ActivatedTaps.apply(x, gamma)
