"""Muon for the matrices inside both models, AdamW for everything else."""

from __future__ import annotations

from collections import Counter, defaultdict

import torch
import torch.distributed as dist
from torch import Tensor, nn


def orthogonalise(g: Tensor) -> Tensor:
    """Newton–Schulz on a stack [N, rows, cols]: pushes every singular value towards one."""
    wide = g.shape[-2] <= g.shape[-1]
    x = g if wide else g.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Parameters are [out, in], or [experts, in, out]; equal shapes are updated as one stack.

    With several workers each orthogonalises its share, and one all-reduce hands the updates round.
    """

    def __init__(self, params: list, lr: float = 0.02, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        world = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if world > 1 else 0
        for group in self.param_groups:
            momentum = group["momentum"]
            params = [p for p in group["params"] if p.grad is not None]
            flat = torch.zeros(sum(p.numel() for p in params))
            updates = flat.split([p.numel() for p in params])
            mine: dict[torch.Size, list[int]] = defaultdict(list)
            seen: Counter[torch.Size] = Counter()
            for i, p in enumerate(params):
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - momentum)
                if seen[p.shape] % world == rank:
                    mine[p.shape].append(i)
                seen[p.shape] += 1
            for shape, indices in mine.items():
                grads = [
                    params[i].grad.lerp(self.state[params[i]]["momentum"], momentum)
                    for i in indices
                ]
                stack = orthogonalise(torch.stack(grads).view(-1, *shape[-2:]))
                out, inp = shape[-2:] if len(shape) == 2 else shape[:0:-1]
                stack *= max(1.0, out / inp) ** 0.5
                for i, update in zip(indices, stack.view(len(indices), -1), strict=True):
                    updates[i].copy_(update)
            if world > 1:
                dist.all_reduce(flat)
            for p, update in zip(params, updates, strict=True):
                p.add_(update.view_as(p), alpha=-group["lr"])


def build_optimisers(model: nn.Module, vision_rate: float) -> list[torch.optim.Optimizer]:
    """vision_rate scales the learning rates of the vision tower and its projector."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, p in model.named_parameters():
        inside = ".layers." in name or "vision_adapter" in name
        matrix = inside and p.ndim >= 2 and "router" not in name
        groups[matrix, "vision" in name or "projector" in name].append(p)
    optimisers = [
        Muon([{"params": groups[True, v], "vision": v} for v in (False, True)]),
        torch.optim.AdamW(
            [{"params": groups[False, v], "vision": v} for v in (False, True)],
            lr=1.5e-3,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        ),
    ]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak_lr"] = group["lr"] * (vision_rate if group.pop("vision") else 1.0)
    return optimisers
