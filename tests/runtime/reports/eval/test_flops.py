"""The published tables of DivPrune (arXiv 2503.02175, tables 1 and 2), recomputed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from divprune.runtime.reports.eval.flops import (
    DecoderShape,
    mean_layer_tokens,
    paper_flops,
    prefill_macs,
)

SEVEN_B, THIRTEEN_B = (32, 4096, 11008), (40, 5120, 13824)
# Tokens of the questions of COCO, Flickr, GQA, MMB, MME, MMMU, NoCaps, OKVQA, POPE, SQA, SEED.
QUESTIONS = np.array([15, 15, 23, 83, 25, 113, 15, 39, 21, 91, 57], float)
# Visual tokens of LLaVA-1.6 on the same data sets.
ANYRES = np.array([2225, 1922, 2239, 1927, 2108, 1882, 2292, 2249, 2250, 1598, 2116], float)
# Questions of ActivityNet-QA, SEED, VideoChatGPT, NextQA, EgoSchema; 8 frames of 144 tokens.
VIDEO_QUESTIONS = np.array([28, 63, 21, 38, 196], float)


def kept(visual: np.ndarray, keep: float) -> np.ndarray:
    return np.array([n - round((1 - keep) * n) for n in visual.tolist()])


@pytest.mark.parametrize(
    ("sizes", "text", "visual", "keep", "original", "pruned", "ratio"),
    [
        (SEVEN_B, QUESTIONS, np.full(11, 576.0), 0.098, 3.2280, 0.5122, 15.63),
        (THIRTEEN_B, QUESTIONS, np.full(11, 576.0), 0.098, 6.2813, 1.0020, 15.71),
        (SEVEN_B, QUESTIONS, ANYRES, 0.098, 11.8489, 1.2659, 10.80),
        (SEVEN_B, VIDEO_QUESTIONS, np.full(5, 1152.0), 0.1, 6.5386, 0.9371, 14.10),
    ],
    ids=["1.5-7B", "1.5-13B", "1.6-7B", "video"],
)
def test_the_averages_are_the_published_ones(sizes, text, visual, keep, original, pruned, ratio):
    whole = paper_flops(*sizes, text + visual)
    short = paper_flops(*sizes, text + visual, text + kept(visual, keep))
    assert whole.mean() / 1e12 == pytest.approx(original, abs=5e-5)
    assert short.mean() / 1e12 == pytest.approx(pruned, abs=5e-5)
    assert 100 * (short / whole).mean() == pytest.approx(ratio, abs=5e-3)


@pytest.mark.parametrize(
    ("sizes", "text", "visual", "left", "layer", "tflops"),
    [
        (SEVEN_B, QUESTIONS, np.full(11, 576.0), 0, 4, 0.6032),
        (THIRTEEN_B, QUESTIONS, np.full(11, 576.0), 0, 4, 1.0301),
        (SEVEN_B, VIDEO_QUESTIONS, np.full(5, 1152.0), 0, 4, 1.1241),
        (SEVEN_B, QUESTIONS, ANYRES, 0, 3, 1.3177),
        (SEVEN_B, QUESTIONS, np.full(11, 576.0), 1, 3, 0.5140),
        (THIRTEEN_B, QUESTIONS, np.full(11, 576.0), 13, 3, 1.0033),
        (SEVEN_B, VIDEO_QUESTIONS, np.full(5, 1152.0), 81, 1, 0.9435),
    ],
    ids=["VTW 7B", "VTW 13B", "VTW video", "VTW 1.6", "FastV 7B", "FastV 13B", "FastV video"],
)
def test_methods_inside_the_model_are_what_their_published_flops_say(
    sizes, text, visual, left, layer, tflops
):
    found = paper_flops(*sizes, text + visual, text + left, layer=layer).mean()
    assert found / 1e12 == pytest.approx(tflops, abs=5e-5)


def test_multiply_adds_are_those_of_the_matrices_and_the_causal_half():
    """One layer by hand: 3 rows, width 8, 2 heads of 4, one of keys, FFN of 5, 7 words."""
    shape = DecoderShape(1, 8, 5, num_heads=2, num_kv_heads=1, head_dim=4, vocab_size=7)
    qkv, behind_attention = 8 * 8 + 2 * 8 * 4, 8 * 8 + 3 * 8 * 5
    pairs = 1 + 2 + 3
    assert prefill_macs(shape, 3) == 3 * qkv + behind_attention + pairs * 2 * 4 * 2 + 7 * 8
    two = prefill_macs(replace(shape, num_layers=2), 3) - prefill_macs(shape, 3)
    assert two == 3 * (qkv + behind_attention) + pairs * 2 * 4 * 2


def test_layers_before_the_pruning_see_every_row():
    shape = DecoderShape(4, 8, 5, num_heads=2, num_kv_heads=1, head_dim=4, vocab_size=7)
    one_more = replace(shape, num_layers=5)
    of_ten, of_three = (prefill_macs(one_more, n) - prefill_macs(shape, n) for n in (10, 3))
    assert prefill_macs(shape, 10, 3, layer=1) == prefill_macs(shape, 3) + of_ten - of_three
    assert prefill_macs(shape, 10, 3) == prefill_macs(shape, 3)


def test_the_mean_of_tokens_over_layers_counts_all_of_them_below_the_selection():
    assert mean_layer_tokens(4, 196, 20) == 20
    assert mean_layer_tokens(4, 196, 20, layer=1) == (196 + 3 * 20) / 4
    assert mean_layer_tokens(4, 196, 0, layer=3) == 147
