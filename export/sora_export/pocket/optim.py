"""The optimiser of both trainings: Muon for weight matrices and kernels, AdamW for the rest, and a weight average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to `update` [rows, columns], by a quintic Newton-Schulz iteration.

    The coefficients are those of Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.to(_iteration_dtype(update.device))
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.T if tall else x).to(update.dtype)
    return result


def _iteration_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 suffices, but processors without instructions for it take ten times as long as in float32."""
    slow = device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.float32 if slow else torch.bfloat16


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024); kernels count as [out, in * taps] matrices.

    The update is scaled by 0.2 * sqrt(max(rows, columns)), so that one learning rate suits AdamW's
    parameters too (Liu et al., arXiv:2502.16982, equation 4).
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": 0.95, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply one update; `closure` is not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]).flatten(1)
                scale = 0.2 * math.sqrt(max(update.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = orthogonalise(update).view(parameter.shape)
                parameter.add_(update, alpha=-group["lr"] * scale)


class Optimiser:
    """Muon on hidden weights and AdamW on the rest, with warm-up, cosine decay and gradient clipping."""

    def __init__(self, modules: Iterable[nn.Module], lr: float, *, plain: tuple[str, ...] = ()) -> None:
        """`plain`: parts of parameter names that go to AdamW although they are matrices (inputs and outputs)."""
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for module in modules:
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    hidden = parameter.ndim >= 2 and min(parameter.flatten(1).shape) > 1
                    hidden = hidden and "scale_shift_table" not in name and "gamma" not in name
                    hidden = hidden and not any(part in name for part in plain)
                    (matrices if hidden else others).append(parameter)
        self.lr = lr
        self.parameters = matrices + others
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, lr),
            torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def step(self, progress: float, warm_up: float) -> None:
        """One update; `progress` in [0, 1] is the share of the training done, `warm_up` in [0, 1] scales the rate."""
        rate = self.lr * warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)


class WeightAverage:
    """An exponential moving average of a module's parameters, in float32."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.updates = 0
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights; early on the average is younger."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in self.module.named_parameters():
            self.average[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights with the average; call again to undo."""
        for name, parameter in self.module.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name] = kept
