"""OpenVINO's own graphs of a LLaVA, fed by hand: what its runtime could reach with DivPrune.

GenAI's pipeline cannot prune a LLaVA. Here its vision tower runs, this project's selection picks
the rows, and its language model takes them as embeddings. Logits are computed of the last row
only, as GenAI has it. Texts are random ids: nothing is tokenised.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13
from openvino_ir import LANGUAGE_MODEL, weights
from protocol import TEXT_TOKENS, Request, now, serve, summarise_steps

from divprune.export.selection.divprune import DivPrune

_TEXT_BEFORE = 35  # of the 60 text tokens
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Graphs:
    """The three graphs of a LLaVA in OpenVINO's format."""

    def __init__(self, directory: Path, threads: int) -> None:
        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": threads}

        def request(model: Any) -> Any:
            return core.compile_model(model, "CPU", options).create_infer_request()

        self._vision = request(directory / "openvino_vision_embeddings_model.xml")
        self._embed = request(directory / "openvino_text_embeddings_model.xml")
        self._language = request(_last_row_only(core.read_model(directory / LANGUAGE_MODEL)))
        self._filled = 0

    def see(self, picture: np.ndarray) -> np.ndarray:
        """A picture uint8 [H, W, 3] to features [N, hidden]."""
        pixels = (picture.astype(np.float32) / 255 - _MEAN) / _DEVIATION
        outputs = self._vision.infer([np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])])
        return np.array(outputs["last_hidden_state"][0])

    def embed(self, ids: list[int]) -> np.ndarray:
        """Ids to [S, hidden]."""
        return np.array(self._embed.infer([np.array([ids], np.int64)])[0][0])

    def forget(self) -> None:
        """Begin another prompt."""
        self._language.reset_state()
        self._filled = 0

    def step(self, rows: np.ndarray) -> int:
        """Rows [S, hidden] behind those that the cache holds, to the most likely next token."""
        filled = self._filled + len(rows)
        feeds = {
            "inputs_embeds": rows[None],
            "attention_mask": np.ones((1, filled), np.int64),
            "position_ids": np.arange(self._filled, filled)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits = self._language.infer(feeds)["logits"]
        self._filled = filled
        return int(logits[0, -1].argmax())


def main() -> None:
    directory = Path(sys.argv[1])
    graphs = Graphs(directory, int(sys.argv[2]))
    selector = DivPrune()
    numbers = random.Random(0)

    def answer(request: Request) -> dict[str, float]:
        noise = np.random.default_rng(numbers.randrange(2**31))
        picture = noise.integers(0, 256, (request.side, request.side, 3), dtype=np.uint8)
        ids = [numbers.randrange(3, 30000) for _ in range(TEXT_TOKENS)]
        graphs.forget()
        began = now()
        features = graphs.see(picture)
        if len(features) != request.image_tokens:
            sys.exit(f"the tower makes {len(features)} tokens, not {request.image_tokens}")
        if request.prunes:
            features = features[np.sort(selector.select(features, request.kept_tokens))]
        seen = now()
        text = graphs.embed(ids)
        rows = np.concatenate([text[:_TEXT_BEFORE], features, text[_TEXT_BEFORE:]])
        stamps = []
        for _ in range(request.new_tokens):
            token = graphs.step(rows)
            stamps.append(now())
            rows = graphs.embed([token])
        steps = summarise_steps(seen, stamps)
        times = {"vision": seen - began, "ttft": stamps[0] - began}
        return times | steps | {"prompt_tokens": TEXT_TOKENS + len(features)}

    runtime = "OpenVINO by hand, DivPrune in NumPy"
    facts = {"runtime": runtime, "version": openvino.__version__, "weights": weights(directory)}
    serve(facts, answer)


def _last_row_only(model: openvino.Model) -> openvino.Model:
    """Cut everything but the last row away in front of the output layer."""
    layer = model.output("logits").get_node().input_value(0).get_node()
    while layer.get_type_name() != "MatMul":
        layer = layer.input_value(0).get_node()
    rows = layer.input_value(0)
    bounds = [opset13.constant(np.array([number])) for number in (-1, 2**31 - 1, 1, 1)]
    layer.input(0).replace_source_output(opset13.slice(rows, *bounds).output(0))
    model.validate_nodes_and_infer_types()
    return model


if __name__ == "__main__":
    main()
