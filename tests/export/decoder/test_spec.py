"""Text configs: what is read from them, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from divprune.export.decoder.spec import DecoderSpec
from divprune.runtime.errors import UnsupportedError


def llama(**changes: Any) -> transformers.LlamaConfig:
    fields = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    return transformers.LlamaConfig(**(fields | changes))


def rope(kind: str, **parameters: float) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **parameters}


def test_head_dim_is_taken_from_the_config_when_it_differs_from_hidden_over_heads() -> None:
    config = transformers.Qwen3Config(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32
    )
    spec = DecoderSpec.from_config(config, tied_head=True)
    assert (spec.head_dim, spec.num_kv_heads, spec.tied_head) == (32, 2, True)


def test_default_rope_frequencies_are_powers_of_theta() -> None:
    spec = DecoderSpec.from_config(llama(), tied_head=False)
    expected = [10000.0 ** (-2 * i / 16) for i in range(8)]
    assert spec.inverse_frequencies == pytest.approx(expected, rel=1e-6)
    assert spec.rope_scaling == 1.0


def test_linear_rope_scaling_divides_the_frequencies() -> None:
    config = llama(rope_parameters=rope("linear", factor=4.0))
    spec = DecoderSpec.from_config(config, tied_head=False)
    assert spec.inverse_frequencies[0] == pytest.approx(0.25)


@pytest.mark.parametrize("original", [None, 64, 128])
@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 8.0])
def test_dynamic_rope_within_the_models_own_length_is_no_scaling(
    factor: float, original: int | None
) -> None:
    parameters = rope("dynamic", factor=factor)
    if original is not None:
        parameters["original_max_position_embeddings"] = original
    config = llama(rope_parameters=parameters, max_position_embeddings=128)
    spec = DecoderSpec.from_config(config, tied_head=False)
    plain = DecoderSpec.from_config(llama(), tied_head=False)
    assert spec.inverse_frequencies == plain.inverse_frequencies
    assert spec.rope_scaling == 1.0


def test_yarn_scales_cosine_and_sine() -> None:
    parameters = rope("yarn", factor=4.0, original_max_position_embeddings=512)
    spec = DecoderSpec.from_config(llama(rope_parameters=parameters), tied_head=False)
    assert spec.rope_scaling == pytest.approx(0.1 * 1.3862944 + 1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (llama(hidden_act="gelu"), "hidden_act"),
        (llama(hidden_size=48), "head_dim"),
        (transformers.GemmaConfig(), "gemma"),
    ],
    ids=["activation", "head_dim", "family"],
)
def test_unsupported_feature_is_refused_by_name(config: Any, named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        DecoderSpec.from_config(config, tied_head=False)
