"""The optimizer Muon: momentum, made orthogonal by Newton-Schulz iterations.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). Weights of one shape are handled as one
stack, because a small model's step would otherwise wait for thousands of small kernels.
"""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


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
        shapes = {}
        for weight in weights:
            shapes.setdefault(tuple(weight.shape), []).append(weight)
        groups = [{"params": same} for same in shapes.values()]
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            parameters = group["params"]
            slopes = torch.stack([p.grad.flatten(1) for p in parameters])
            state = self.state[parameters[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(slopes)
            state["momentum"].lerp_(slopes, 1 - group["momentum"])
            update = orthogonal(slopes.lerp(state["momentum"], group["momentum"]))
            size = 0.2 * max(update.shape[1:]) ** 0.5 * group["lr"]
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, [u.view(p.shape) for u, p in zip(update, parameters)], alpha=-size)
