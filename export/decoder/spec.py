"""The text model's shape, read from its config; unsupported features are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from divprune.export.decoder.multimodal_rotary import MULTIMODAL_TEXT_MODELS, rotary_axes
from divprune.export.decoder.reference import text_model_without_vocabulary
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["SUPPORTED_TEXT_MODELS", "DecoderSpec", "check_text_model"]

SUPPORTED_TEXT_MODELS = ("llama", "mistral", "qwen2", "qwen3", *MULTIMODAL_TEXT_MODELS)

# Frequencies of these types do not depend on the length of the sequence at hand; of dynamic ones
# not within the model's own length (InternVL3), beyond which no export goes.
_STATIC_ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic")


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Shape of a llama-type decoder.

    ``inverse_frequencies`` (head_dim / 2 values) and ``rope_scaling`` (the factor on cosine
    and sine) come from transformers, so every static rope type is the one it computes.

    ``rotary_axes`` has one of 0 (time), 1 (height) and 2 (width) for every frequency where a
    token has three positions, and is empty where it has one. ``planes`` are names of inputs
    [1, S, hidden], the first of which is added to what layer 0 makes of its rows, the second to
    what layer 1 makes of them, and so on (DeepStack).
    """

    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    inverse_frequencies: tuple[float, ...]
    rope_scaling: float
    tied_head: bool
    rotary_axes: tuple[int, ...] = ()
    planes: tuple[str, ...] = ()

    @property
    def position_axes(self) -> int:
        """Positions that a token has: 1, or 3 (time, height, width)."""
        return 3 if self.rotary_axes else 1

    @classmethod
    def from_config(
        cls,
        config: PreTrainedConfig,
        *,
        tied_head: bool,
        planes: tuple[str, ...] = (),
    ) -> DecoderSpec:
        """Read a transformers text config.

        ``tied_head`` says whether the output layer is the embedding table; the config of the
        whole model decides that, not the text config. ``planes`` are those of the family.

        Raises:
            UnsupportedError: naming the first feature that the graphs cannot express.
        """
        _check_supported(config)
        _check_planes(planes, config.num_hidden_layers)
        frequencies, scaling = _rope(config)
        return cls(
            model_type=config.model_type,
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=_head_dim(config),
            vocab_size=config.vocab_size,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            inverse_frequencies=frequencies,
            rope_scaling=scaling,
            tied_head=tied_head,
            rotary_axes=rotary_axes(config, len(frequencies)),
            planes=planes,
        )


def _head_dim(config: Any) -> int:
    stated: int | None = getattr(config, "head_dim", None)
    return stated or int(config.hidden_size) // int(config.num_attention_heads)


def _rope(config: Any) -> tuple[tuple[float, ...], float]:
    rotary: Any = text_model_without_vocabulary(config, num_layers=0).rotary_emb
    return tuple(rotary.inv_freq.double().tolist()), float(rotary.attention_scaling)


def check_text_model(config: PreTrainedConfig) -> None:
    """Check the kind of a text model, before anything is read that other kinds do not have.

    Raises:
        UnsupportedError: listing the kinds that there are.
    """
    if config.model_type not in SUPPORTED_TEXT_MODELS:
        raise UnsupportedError(
            "the text model is of a kind that cannot be exported yet",
            expected="one of " + ", ".join(SUPPORTED_TEXT_MODELS),
            found=config.model_type,
        )


def _check_supported(config: Any) -> None:
    check_text_model(config)
    if config.hidden_act not in ("silu", "swish"):
        raise UnsupportedError(
            "text_config.hidden_act is not supported", expected="silu", found=config.hidden_act
        )
    if _head_dim(config) % 8:
        raise UnsupportedError(
            "text_config.head_dim is not supported",
            expected="a multiple of 8",
            found=_head_dim(config),
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise UnsupportedError(
            "query heads cannot be shared evenly among key/value heads",
            expected=f"num_attention_heads ({config.num_attention_heads}) divisible by "
            "num_key_value_heads",
            found=config.num_key_value_heads,
        )
    _check_rope(config)


def _check_planes(planes: tuple[str, ...], num_layers: int) -> None:
    if len(planes) > num_layers:
        raise UnsupportedError(
            "the vision tower has features for more decoder layers than there are",
            expected=f"at most {num_layers}",
            found=len(planes),
        )


def _check_rope(config: Any) -> None:
    parameters = config.rope_parameters or {}
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in _STATIC_ROPE_TYPES:
        raise UnsupportedError(
            "rope scaling of this type depends on the sequence length and is not supported",
            expected="one of " + ", ".join(_STATIC_ROPE_TYPES),
            found=rope_type,
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(
            "rotary embedding of a part of each head is not supported",
            expected="partial_rotary_factor 1.0",
            found=parameters["partial_rotary_factor"],
        )
