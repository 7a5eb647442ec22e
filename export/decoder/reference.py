"""transformers' own text model, cut down to what the exporter needs of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["text_model_without_vocabulary"]


def text_model_without_vocabulary(config: PreTrainedConfig, num_layers: int) -> PreTrainedModel:
    """Build the text model of ``config`` with ``num_layers`` blocks and a one-word vocabulary.

    The embedding table is the largest tensor of many models and is not needed to compute the
    rotary frequencies or to check a block.
    """
    import transformers

    small: Any = copy.deepcopy(config)
    small.vocab_size = 1
    small.pad_token_id = None
    small.num_hidden_layers = num_layers
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:num_layers]
    auto_model: Any = transformers.AutoModel
    model: PreTrainedModel = auto_model.from_config(small)
    return model
