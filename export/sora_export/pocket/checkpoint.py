"""Training checkpoints as safetensors: weights, averaged weights, progress; never a pickle.

The optimiser's state is not kept: a resumed run starts it afresh under a short warm-up.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sora_export.pocket.optim import WeightAverage


def save(path: Path, modules: dict[str, nn.Module], averages: dict[str, WeightAverage], seconds: float) -> None:
    """Write every module's state and average, and the training time so far, in one atomic step."""
    tensors = {}
    for name, module in modules.items():
        for key, tensor in module.state_dict().items():
            tensors[f"{name}/{key}"] = tensor.detach().clone().contiguous()
    for name, average in averages.items():
        for key, tensor in average.average.items():
            tensors[f"{name}.average/{key}"] = tensor.clone().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    updates = {f"{name}.updates": str(average.updates) for name, average in averages.items()}
    save_file(tensors, partial, metadata={"seconds": str(seconds), **updates})
    partial.replace(path)


def load(path: Path, modules: dict[str, nn.Module], averages: dict[str, WeightAverage]) -> float:
    """Read what `save` wrote into `modules` and `averages`; returns the seconds of training so far.

    Pass no averages to load the averaged weights themselves into the modules, as inference wants them.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        keys = list(file.keys())
        for name, module in modules.items():
            state = {k.split("/", 1)[1]: file.get_tensor(k) for k in keys if k.startswith(f"{name}/")}
            averaged = {k.split("/", 1)[1]: file.get_tensor(k) for k in keys if k.startswith(f"{name}.average/")}
            if name in averages:
                averages[name].average = averaged
                averages[name].updates = int(metadata[f"{name}.updates"])
            else:
                state |= averaged
            module.load_state_dict(state)
    return float(metadata["seconds"])
