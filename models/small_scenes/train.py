"""Make the model from nothing: ``python -m models.small_scenes.train``.

Three stages: the tower learns what each patch shows, the decoder learns to answer from a tower
that stands still, then both learn together. Run again after an interruption and it goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.small_scenes.architecture import make_model
from models.small_scenes.batches import PREFIX, Batch, BatchRequest, stream_batches
from models.small_scenes.checkpoint_files import make_tokenizer
from models.small_scenes.forward import encode_patches
from models.small_scenes.losses import (
    PatchHead,
    answer_loss,
    drop_background,
    patch_loss,
    to_pixel_values,
)
from models.small_scenes.save import save_checkpoint
from models.small_scenes.thread_choice import ThreadChoice
from models.small_scenes.validation import validate

__all__ = ["STAGES", "Stage", "main", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: In the log.
        steps: How many batches.
        batch: Pictures a batch.
        rate: Highest learning rate.
        last_rate: What it falls to along a cosine.
        tower: Whether the tower learns.
        text: Whether questions are asked.
        patch_weight: Weight of the patch loss at the beginning; it falls to a tenth.
        dropped: Fraction of the batches whose answers are sought among fewer visual tokens: it
            saves time, and the decoder learns not to count on tokens that show nothing.
        large: Probability of large figures, ``most`` the most figures (the curriculum).
    """

    name: str
    steps: int
    batch: int
    rate: float
    last_rate: float
    tower: bool
    text: bool
    patch_weight: float
    dropped: float = 0.0
    large: float = 0.45
    most: int = 8


STAGES: tuple[Stage, ...] = (
    Stage("large figures", 400, 32, 1.5e-3, 1.5e-3, True, False, 1.0, large=0.9, most=4),
    Stage("patches", 900, 32, 1.5e-3, 4e-4, True, False, 1.0),
    Stage("answers", 2300, 16, 1.5e-3, 1e-3, False, True, 0.0, dropped=0.9),
    Stage("together", 2000, 16, 8e-4, 2e-5, True, True, 0.3, dropped=0.3),
)
_FEWER = (56, 72, 112)
_LOG_EVERY = 50
_VALIDATE_EVERY = 600
_SAVE_EVERY = 100


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/small_scenes"),
        help="where the state to resume from is kept",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--share",
        action="store_true",
        help="fewer threads while others use the machine; not bit for bit the same",
    )
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to try the code")
    parser.add_argument(
        "--until", choices=[stage.name for stage in STAGES], help="stop behind this stage"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stages = STAGES
    if options.smoke:
        stages = tuple(replace(stage, steps=3, batch=4) for stage in STAGES)
    if options.until:
        last = [stage.name for stage in stages].index(options.until)
        stages = stages[: last + 1]
    torch.set_num_threads(options.threads)
    choice = ThreadChoice(options.threads) if options.share else None
    train(stages, options.output, options.work, options.seed, choice)


class Run:
    """The state of a training: model, patch head, optimiser and log."""

    def __init__(self, seed: int, work: Path) -> None:
        self.seed, self.work = seed, work
        self.model = make_model(seed)
        self.head = PatchHead(self.model.config.vision_config.hidden_size)
        self.stage, self.step, self.optimizer_state = 0, 0, None
        self.seconds = 0.0
        work.mkdir(parents=True, exist_ok=True)
        opening = make_tokenizer().encode(PREFIX[0]).ids
        self.opening = torch.tensor(opening)

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the state beside the last one, then replace it."""
        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": optimizer.state_dict(),
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.work / "state.new")
        (self.work / "state.new").replace(self.work / "state.pt")

    def resume(self) -> None:
        """Continue where ``work`` says that an earlier run ended, if there was one."""
        file = self.work / "state.pt"
        if file.exists():
            state = torch.load(file, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.head.load_state_dict(state["head"])
            self.stage, self.step = state["stage"], state["step"]
            self.optimizer_state, self.seconds = state["optimizer"], state["seconds"]
            self.log({"resumed": self.stage, "step": self.step})

    def log(self, record: dict[str, Any]) -> None:
        """One line of the training log."""
        rounded = {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in record.items()
        }
        with (self.work / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
        logger.info("%s", rounded)


def train(
    stages: tuple[Stage, ...],
    output: Path,
    work: Path,
    seed: int,
    threads: ThreadChoice | None = None,
) -> None:
    """Run what is left of ``stages``, then write the checkpoint to ``output``."""
    run = Run(seed, work)
    run.resume()
    while run.stage < len(stages):
        _run_stage(run, stages, threads)
        run.stage, run.step, run.optimizer_state = run.stage + 1, 0, None
    save_checkpoint(run.model, output)


def _run_stage(run: Run, stages: tuple[Stage, ...], threads: ThreadChoice | None) -> None:
    stage = stages[run.stage]
    first = sum(earlier.steps * earlier.batch for earlier in stages[: run.stage])
    request = BatchRequest(run.seed, first, stage.batch, stage.large, stage.most, stage.text)
    optimizer = _make_optimizer(run, stage)
    recent: deque[dict[str, float]] = deque(maxlen=_LOG_EVERY)
    clock = time.perf_counter()
    for batch in stream_batches(request, run.step, stage.steps):
        if threads is not None:
            threads.next_step()
        _set_rate(optimizer, stage, run.step)
        recent.append(_learn(run, stage, optimizer, batch))
        run.step += 1
        if run.step % _LOG_EVERY == 0 or run.step == stage.steps:
            elapsed, clock = time.perf_counter() - clock, time.perf_counter()
            run.seconds += elapsed
            means = {key: sum(each[key] for each in recent) / len(recent) for key in recent[0]}
            run.log(
                {
                    "stage": stage.name,
                    "step": run.step,
                    "seconds": run.seconds,
                    "pictures_per_second": len(recent) * stage.batch / elapsed,
                    **means,
                    "threads": torch.get_num_threads(),
                }
            )
        at_end = run.step == stage.steps
        if stage.text and (run.step % _VALIDATE_EVERY == 0 or at_end):
            run.log(
                {
                    "stage": stage.name,
                    "step": run.step,
                    "seconds": run.seconds,
                    "validation": validate(run.model, run.opening),
                }
            )
            clock = time.perf_counter()
        if run.step % _SAVE_EVERY == 0 or at_end:
            run.save(optimizer)
            clock = time.perf_counter()


def _make_optimizer(run: Run, stage: Stage) -> torch.optim.Optimizer:
    tower = run.model.model.vision_tower
    for weight in tower.parameters():
        weight.requires_grad_(stage.tower)
    weights = [*run.head.parameters(), *(tower if not stage.text else run.model).parameters()]
    learned = [weight for weight in weights if weight.requires_grad]
    groups = [
        {"params": [w for w in learned if w.ndim > 1], "weight_decay": 0.02},
        {"params": [w for w in learned if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))
    if run.optimizer_state is not None:
        optimizer.load_state_dict(run.optimizer_state)
    return optimizer


def _set_rate(optimizer: torch.optim.Optimizer, stage: Stage, step: int) -> None:
    """Rise over the first hundred steps, then fall along a cosine."""
    fall = 0.5 + 0.5 * math.cos(math.pi * step / stage.steps)
    rate = stage.last_rate + (stage.rate - stage.last_rate) * fall
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / 100)


def _learn(
    run: Run, stage: Stage, optimizer: torch.optim.Optimizer, batch: Batch
) -> dict[str, float]:
    """One step; the loss and the accuracies of the batch."""
    total = torch.zeros(())
    numbers: dict[str, float] = {}
    with torch.autocast("cpu", torch.bfloat16):
        with torch.set_grad_enabled(stage.tower):
            patches = encode_patches(run.model.model.vision_tower, to_pixel_values(batch))
        if stage.patch_weight:
            loss, found = patch_loss(run.head, patches, batch)
            weight = stage.patch_weight * (1 - 0.9 * run.step / stage.steps * stage.text)
            total, numbers = total + weight * loss, numbers | found
        if stage.text:
            patches = _drop_some(run, stage, patches, batch)
            loss, found = answer_loss(run.model, patches, batch, run.opening)
            total, numbers = total + loss, numbers | found
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    return {"loss": total.item(), **numbers}


def _drop_some(run: Run, stage: Stage, patches: torch.Tensor, batch: Batch) -> torch.Tensor:
    """All patches, or fewer in the ``dropped`` part of the batches."""
    seed = hash((run.seed, run.stage, run.step))
    rng = random.Random(seed)
    if rng.random() >= stage.dropped:
        return patches
    return drop_background(patches, batch, rng.choice(_FEWER), seed % 2**32)


if __name__ == "__main__":
    main()
