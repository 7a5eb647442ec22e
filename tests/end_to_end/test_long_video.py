"""A video of 64 frames, 9 216 tokens in one pool: selected without a matrix of all pairs.

The grid of the real LLaVA-NeXT-Video, 24 x 24 patches pooled to 144 tokens a frame, in a tower and
a decoder of a few layers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from anyres_checkpoints import ANYRES_CHECKPOINTS, AnyresSpec, write_anyres_checkpoint
from PIL import Image

from divprune.export.export_model import ExportOptions, export_model
from divprune.export.selection import get_selector
from divprune.export.selection.protocol import Setting
from divprune.runtime import Pipeline
from divprune.runtime.families import VideoFrames

FRAMES, FRAME_TOKENS, KEEP = 64, 144, 0.1
TOKENS = FRAMES * FRAME_TOKENS
MATRIX_MIB = TOKENS**2 * 4 / 2**20
PROMPT = "What happens?"

_TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "patch_size": 2,
    "image_size": 48,
}
_TEXT = {"model_type": "llama", "num_hidden_layers": 1, "max_position_embeddings": 2048}
_SPEC = AnyresSpec(
    "LlavaNextVideoConfig",
    {
        "vision_config": _TOWER,
        "image_grid_pinpoints": [[48, 96], [96, 48], [96, 96]],
        "image_token_index": 471,
        "video_token_index": 470,
    },
    _TEXT,
    layout="hub",
    seed=6,
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long-video")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ANYRES_CHECKPOINTS, "long-video", _SPEC)
        checkpoint = write_anyres_checkpoint(folder / "checkpoint", "long-video")
    export_model(
        ExportOptions(
            model=str(checkpoint),
            keep=KEEP,
            dtype="fp32",
            max_image_tokens=TOKENS,
            max_seq_len=1024,
            baseline=False,
            verify=False,
            output=folder / "engine",
        )
    )
    return folder / "engine"


@pytest.fixture(scope="module")
def frames() -> tuple[Image.Image, ...]:
    rng = np.random.default_rng(0)
    return tuple(
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(FRAMES)
    )


def test_all_frames_are_one_pool_whose_choice_is_that_of_the_reference(engine, frames):
    pipeline = Pipeline.from_dir(engine)
    assert pipeline.manifest.selector.parameters["similarities"] == "rows on demand"
    video = {"type": "video", "video": VideoFrames(frames, fps=None)}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": PROMPT}]}]
    result = pipeline.chat(messages, max_new_tokens=2, num_frames=FRAMES).result
    (image,) = result.images
    assert (image.num_image_tokens, image.num_kept) == (TOKENS, round(KEEP * TOKENS))
    prepared = pipeline.family.prepare_video(VideoFrames(frames, fps=None), FRAMES)
    slots = np.zeros(image.num_kept, np.int32)
    features = pipeline.backend.encode_image({**prepared.inputs, "kept_slots": slots})
    reference = get_selector("divprune", Setting(max_tokens=TOKENS))
    rows = np.asarray(features.image_features, np.float32)
    regret = reference.regret(rows, features.selection_order)
    assert regret < 1e-5
    assert len(set(image.kept_indices)) == image.num_kept


def test_its_memory_stays_below_that_of_the_matrix(engine, frames, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / f"{number:03}.png")
    peaks = {}
    for count in (1, FRAMES):
        command = [sys.executable, "-m", "divprune.runtime.cli.run", str(engine), "--json"]
        command += ["--video", str(folder), "--num-frames", str(count), "--prompt", PROMPT]
        done = subprocess.run(
            [*command, "--max-new-tokens", "1"], capture_output=True, text=True, check=True
        )
        answer = json.loads(done.stdout)
        assert answer["num_image_tokens"] == count * FRAME_TOKENS
        peaks[count] = answer["memory_bytes"]["peak_rss"] / 2**20
    assert peaks[FRAMES] - peaks[1] < MATRIX_MIB, peaks
