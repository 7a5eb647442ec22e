"""Whether a picture, a prompt and an answer fit into the cache, and which length makes them fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import OptionError, UnsupportedError

if TYPE_CHECKING:
    from divprune.export.planning.plan import ExportPlan

__all__ = ["check_room", "longest_sequence"]

_ANSWER = 128  # tokens that a cache is advised to have beside picture and prompt


def longest_sequence(config: Any) -> int:
    """The longest sequence that the graphs compute as the text model of ``config`` does.

    Within its own length dynamic rope scaling scales nothing (InternVL3), and a sliding window
    that is as long as the sequence hides nothing.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    no_layer_uses_it = kinds and "sliding_attention" not in kinds
    most = int(config.max_position_embeddings)
    return most if window is None or no_layer_uses_it else min(most, int(window))


def check_room(plan: ExportPlan, prompt_text_tokens: int) -> None:
    """Refuse a cache that is longer than the model's window, or shorter than a picture needs.

    Args:
        plan: The export.
        prompt_text_tokens: Tokens of a short prompt beside the visual ones.

    Raises:
        UnsupportedError: for a cache in which a sliding window would hide something.
        OptionError: for one that not even a short prompt with one picture fits into.
    """
    longest = longest_sequence(plan.family.text_config)
    baseline = plan.options.baseline
    visual = plan.num_image_tokens if baseline else plan.num_fed
    needed = prompt_text_tokens + visual + 1
    pruned = prompt_text_tokens + plan.num_fed + 1
    if plan.max_seq_len > longest:
        too_short = f", which is too short for a picture ({plan.num_fed} tokens) and a prompt"
        raise UnsupportedError(
            "sliding-window attention is not supported",
            expected=f"sliding_window of at least --max-seq-len ({plan.max_seq_len}), or none",
            found=f"{longest}{too_short if pruned > longest else ''}",
            fix=_fitting(longest, needed, pruned),
        )
    if needed > plan.max_seq_len:
        raise OptionError(
            "the cache has no room for a picture and an answer"
            + (" at keep 1.0, the baseline" if baseline else ""),
            expected=f"--max-seq-len of at least {needed} ({visual} visual tokens and "
            "a prompt of a few words)",
            found=plan.max_seq_len,
            fix=_fitting(min(needed + _ANSWER, longest), needed, pruned),
        )


def _fitting(slots: int, needed: int, pruned: int) -> str | None:
    """The options with which ``slots`` are enough; None if nothing makes them enough."""
    if needed <= slots:
        return f"--max-seq-len {slots}"
    return f"--max-seq-len {slots} --no-baseline" if pruned <= slots else None
