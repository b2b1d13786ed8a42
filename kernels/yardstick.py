"""Yardsticks through PyTorch, for the machine on which kernel-check has just run, steady state, medians by events, on
random data. Of the first two, a bf16 matrix product and cuDNN's bf16 attention, NOTES.md gives the figures beside all
others; then come what the libraries take for the shapes of kernel-check."""

import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def median_ms(run, warm, count):
    for _ in range(warm):
        run()
    times = []
    for _ in range(count):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


rows = 32760
a = torch.randn(rows, 5120, device="cuda", dtype=torch.bfloat16)
b = torch.randn(5120, 5120, device="cuda", dtype=torch.bfloat16)
ms = median_ms(lambda: a @ b, 300, 200)
print(f"bf16 matmul {rows}x5120x5120: {ms:.3f} ms, {2 * rows * 5120 * 5120 / ms / 1e9:.0f} TFLOP/s")

q, k, v = (torch.randn(1, rows, 40, 128, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
    ms = median_ms(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v), 6, 12)
print(f"cuDNN bf16 attention, {rows} rows and keys, 40 heads: {ms:.2f} ms, {4 * rows * rows * 5120 / ms / 1e9:.0f} TFLOP/s")


def steady_ms(run):
    return median_ms(run, max(5, int(250 / median_ms(run, 2, 5))), 15)


for columns, inner in [(5120, 5120), (15360, 5120), (13824, 5120), (5120, 13824)]:
    a = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(columns, inner, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(columns, device="cuda", dtype=torch.bfloat16)
    e4m3 = [x.to(torch.float8_e4m3fn) for x in (a, b)]
    scales = torch.rand(rows, 1, device="cuda") + 0.5, torch.rand(1, columns, device="cuda") + 0.5

    def scaled(fast):
        return lambda: torch._scaled_mm(
            e4m3[0], e4m3[1].t(), *scales, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=fast)

    for name, run in [("bf16", lambda: torch.addmm(bias, a, b.t())), ("e4m3 fast", scaled(True)), ("e4m3", scaled(False))]:
        ms = steady_ms(run)
        print(f"{name:10} {rows}x{columns}x{inner}: {ms:.3f} ms, {2 * rows * columns * inner / ms / 1e9:.0f} TFLOP/s")

torch.backends.cudnn.benchmark = True
for height, width, channels, outputs in [
    (480, 832, 96, 96), (240, 416, 192, 192), (120, 208, 384, 384), (60, 104, 384, 384), (480, 832, 96, 4)]:
    x = torch.randn(1, channels, 10, height + 2, width + 2, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(outputs, channels, 3, 3, 3, device="cuda", dtype=torch.bfloat16)
    x, w = (t.to(memory_format=torch.channels_last_3d) for t in (x, w))
    ms = steady_ms(lambda: torch.nn.functional.conv3d(x, w))
    flop = 2 * 8 * height * width * 27 * channels * outputs
    print(f"cuDNN 3x3x3, {channels} to {outputs} at {height}x{width}, padded before: {ms:.3f} ms, {flop / ms / 1e9:.0f} TFLOP/s")

q = torch.randn(1, 40, rows, 128, device="cuda", dtype=torch.bfloat16)
for keys in (512, 257):
    k, v = (torch.randn(1, 40, keys, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        ms = steady_ms(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    print(f"attention to {keys} keys, 40 heads: {ms:.3f} ms, {4 * rows * keys * 5120 / ms / 1e9:.0f} TFLOP/s")
