from __future__ import annotations

import pytest

from divprune.configs import load_preset
from divprune.runtime.families import read_dimensions
from divprune.runtime.reports.plan.gain import predict_gain


# Counted by hand from the configs: TFLOP of the tower, tokens, TFLOP of the decoder, ceiling.
@pytest.mark.parametrize(
    "preset, tower, tokens, decoder, ceiling",
    [
        ("llava-1.5-7b", 0.37, 576, 7.5, 7.0),
        ("llava-1.6-vicuna-7b", 1.8, 2340, 30, 6.6),
        ("internvl3-2b", 9.4, 3328, 8.7, 1.8),
        ("smolvlm2-2.2b", 8.7, 1053, 3.4, 1.3),
        ("smolvlm2-256m", 2.8, 832, 0.18, 1.1),
    ],
)
def test_work_of_tower_and_decoder_for_a_picture_of_640_by_480(
    preset, tower, tokens, decoder, ceiling
):
    model = read_dimensions(preset, load_preset(preset).config)
    gain = predict_gain(model.typical(), 0.1)
    assert gain.num_image_tokens == tokens
    assert gain.tower_flops / 1e12 == pytest.approx(tower, rel=0.1)
    assert gain.decoder_flops / 1e12 == pytest.approx(decoder, rel=0.1)
    assert gain.ceiling == pytest.approx(ceiling, rel=0.1)
    assert ("little" in str(gain)) == (ceiling < 1.5)
