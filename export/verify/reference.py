"""Give transformers' own modules the weights that were exported, in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from divprune.export.checkpoint.weights import WeightSource
from divprune.export.vision.trace import buffer_values

if TYPE_CHECKING:
    import torch

__all__ = ["lend_weights", "load_weights"]


def load_weights(module: torch.nn.Module, weights: WeightSource, prefix: str = "") -> None:
    """Give a module on the meta device the weights that the graphs have, in float32."""
    _load(module, weights, [name for name, _ in module.named_parameters()], prefix)


@contextlib.contextmanager
def lend_weights(module: torch.nn.Module, weights: WeightSource) -> Iterator[None]:
    """The same, but linear layers have theirs only while they run: a tower in little memory."""
    import torch

    handles, lent = [], set[str]()
    for path, part in module.named_modules():
        if type(part) is not torch.nn.Linear:
            continue
        names = {key: f"{path}.{key}" for key, _ in part.named_parameters()}
        lent.update(names.values())

        def take(part: Any, _: Any, names: dict[str, str] = names) -> None:
            state = {k: weights.reference(weights.canonical_name(n)) for k, n in names.items()}
            part.load_state_dict(state, assign=True)

        handles.append(part.register_forward_pre_hook(take))
        handles.append(part.register_forward_hook(_give_back))
    _load(module, weights, [n for n, _ in module.named_parameters() if n not in lent])
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _give_back(part: Any, *_: Any) -> None:
    part.to("meta")


def _load(
    module: torch.nn.Module, weights: WeightSource, names: list[str], prefix: str = ""
) -> None:
    import torch

    state = {
        name: weights.reference(prefix + name if prefix else weights.canonical_name(name))
        for name in names
    }
    module.load_state_dict(state, assign=True, strict=False)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            values = torch.from_numpy(buffer_values(name, buffer.shape[-1]))
            setattr(module.get_submodule(owner), attribute, values)
