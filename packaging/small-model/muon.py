"""The optimizer Muon: momentum, made orthogonal by Newton-Schulz iterations.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). Weights are handled in
stacks, because a small model's step would otherwise wait for thousands of small kernels.
"""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
LARGE = 128  # matrices with fewer rows or columns share a stack


def orthogonal(stack):
    """Returns stacked matrices `[N, rows, columns]` with all singular values brought near one."""
    a, b, c = COEFFICIENTS
    x = stack.bfloat16() if stack.is_cuda else stack
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return (x.transpose(1, 2) if tall else x).to(stack.dtype)


class Muon(torch.optim.Optimizer):
    """`lr` is meant as for `AdamW`: updates have the size that `AdamW`'s typically have. Of a convolution's weight, all
    axes but the first are the columns."""

    def __init__(self, weights, lr, momentum=0.95, weight_decay=0.01):
        stacks = {}
        for weight in weights:
            shape = weight.flatten(1).shape
            # Zeros around a matrix change nothing, so that all small ones can go into one stack.
            stacks.setdefault(shape if min(shape) >= LARGE else None, []).append(weight)
        super().__init__([{"params": one} for one in stacks.values()],
                         dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            parameters = group["params"]
            matrices = [p.grad.flatten(1) for p in parameters]
            rows, columns = (max(m.shape[axis] for m in matrices) for axis in (0, 1))
            slopes = matrices[0].new_zeros(len(matrices), rows, columns)
            for slope, matrix in zip(slopes, matrices):
                slope[:matrix.shape[0], :matrix.shape[1]] = matrix
            state = self.state[parameters[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(slopes)
            state["momentum"].lerp_(slopes, 1 - group["momentum"])
            stack = orthogonal(slopes.lerp(state["momentum"], group["momentum"]))
            updates = [u[:m.shape[0], :m.shape[1]].reshape(p.shape) for u, m, p in zip(stack, matrices, parameters)]
            torch._foreach_mul_(updates, [-0.2 * group["lr"] * max(m.shape) ** 0.5 for m in matrices])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates)
