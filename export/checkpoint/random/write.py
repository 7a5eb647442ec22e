"""Write a checkpoint: weights made piece by piece, and the files beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.export.checkpoint.checkpoint import expected_tensors
from divprune.export.checkpoint.random.families import CheckpointFiles, Layout, files_of
from divprune.export.checkpoint.random.families.base import class_name
from divprune.export.checkpoint.random.shapes import shape_config
from divprune.export.checkpoint.random.tensors import (
    STORED_TYPES,
    DType,
    TensorSource,
    write_json,
    write_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["SHARD_SIZE", "random_tensors", "write_checkpoint", "write_random_checkpoint"]

SHARD_SIZE = 5 * 10**9


def write_random_checkpoint(
    directory: Path,
    name: str,
    *,
    layout: Layout = "hub",
    dtype: DType = "fp16",
    shard_size: int = SHARD_SIZE,
    seed: int = 0,
) -> Path:
    """Write a whole random checkpoint to ``directory`` and return it.

    No more than 16 MiB of it are in memory at any time.

    Args:
        directory: Created if missing; files of the same names are overwritten.
        name: A preset or one of ``SHAPES``.
        layout: How keys and config are spelled, and where template and processors are kept.
        dtype: Stored type of all tensors.
        shard_size: Largest shard in bytes (one tensor may exceed it).
        seed: The same seed gives the same bytes.

    Raises:
        OptionError: for an unknown name.
        UnsupportedError: for a layout that the model does not have.
    """
    config = shape_config(name)
    tensors = random_tensors(config, seed)
    return write_checkpoint(
        directory, config, tensors, layout=layout, dtype=dtype, shard_size=shard_size
    )


def random_tensors(config: PreTrainedConfig, seed: int) -> dict[str, TensorSource]:
    """Random weights by canonical name; without ``lm_head.weight`` where it is tied."""
    shapes = expected_tensors(config)
    return {name: TensorSource.random(name, shape, seed) for name, shape in shapes.items()}


def write_checkpoint(
    directory: Path,
    config: PreTrainedConfig,
    tensors: Mapping[str, TensorSource],
    *,
    layout: Layout = "hub",
    dtype: DType = "fp16",
    shard_size: int = SHARD_SIZE,
    image_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of given weights to ``directory`` and return it.

    Args:
        directory: Created if missing; files of the same names are overwritten.
        config: As transformers has it.
        tensors: Weights by canonical name; without ``lm_head.weight`` where it is tied.
        layout: How keys and config are spelled, and where template and processors are kept.
        dtype: Stored type of all tensors.
        shard_size: Largest shard in bytes (one tensor may exceed it).
        image_options: What the image and video processors' configs say instead.

    Raises:
        UnsupportedError: for a model type, or a layout of it, that cannot be written.
    """
    files = files_of(config, layout)
    directory.mkdir(parents=True, exist_ok=True)
    stored = {files.stored_name(name): tensor for name, tensor in tensors.items()}
    write_weights(directory, stored, dtype, shard_size)
    _write_config(directory, files, dtype)
    _write_tokenizer(directory, files)
    _write_template(directory, files)
    _write_processors(directory, files, image_options or {})
    return directory


def _write_config(directory: Path, files: CheckpointFiles, dtype: DType) -> None:
    content = files.config_json()
    content["architectures"] = [class_name(files.config, "ForConditionalGeneration")]
    content.pop("dtype", None)
    content["dtype" if files.layout == "v5" else "torch_dtype"] = STORED_TYPES[dtype][0]
    write_json(directory / "config.json", content)
    text = files.config.text_config
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else files.eos_id
    generation = {"_from_model_config": True, "bos_token_id": text.bos_token_id}
    generation |= {"eos_token_id": ends, "transformers_version": "4.52.4"}
    write_json(directory / "generation_config.json", generation)


def _write_tokenizer(directory: Path, files: CheckpointFiles) -> None:
    tokenizer, names = files.tokenizer(), files.named_tokens()
    tokenizer.save(str(directory / "tokenizer.json"))
    standard = ("unk_token", "bos_token", "eos_token", "pad_token")
    content = {
        "added_tokens_decoder": {
            str(index): {"content": token.content, "special": True, "normalized": False}
            | {"lstrip": False, "rstrip": False, "single_word": False}
            for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
        },
        "additional_special_tokens": [*files.fixed_tokens().values()],
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {key: names[key] for key in names if key not in standard},
        "model_max_length": files.config.text_config.max_position_embeddings,
        "processor_class": class_name(files.config, "Processor"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: names[key] for key in names if key in standard},
    }
    write_json(directory / "tokenizer_config.json", content)


def _write_template(directory: Path, files: CheckpointFiles) -> None:
    if files.layout == "hub":
        content = {"chat_template": files.chat_template}
        write_json(directory / "chat_template.json", content)
    else:
        (directory / "chat_template.jinja").write_text(files.chat_template, encoding="utf-8")


def _write_processors(directory: Path, files: CheckpointFiles, options: Mapping[str, Any]) -> None:
    """Nested in processor_config.json by transformers 5, in files of their own before."""
    image, video = {**files.image_processor(), **options}, files.video_processor()
    processor = files.processor()
    if files.layout == "v5":
        processor["image_processor"] = image
    else:
        write_json(directory / "preprocessor_config.json", image)
    if video is not None and files.layout == "v5":
        processor["video_processor"] = {**video, **options}
    elif video is not None:
        write_json(directory / "video_preprocessor_config.json", {**video, **options})
    write_json(directory / "processor_config.json", processor)
