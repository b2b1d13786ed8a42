"""Two yardsticks through PyTorch, for the machine on which kernel-check has just run: a bf16 matrix product and cuDNN's
bf16 attention, steady state, medians by events, on random data."""

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
