"""The export from end to end: checkpoint in, engine directory out.

checkpoint ─► vision graph ─► LLM graph ─► host files ─► self-check ─► manifest ─► rename
"""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import onnx_ir as ir
from PIL import Image

from divprune.export.checkpoint.files import read_json_object
from divprune.export.checkpoint.source import resolve_model
from divprune.export.decoder.graph import write_decoder
from divprune.export.graphs.files import DECODER_FILES, describe_graph, save_graph, share_data
from divprune.export.graphs.lanes import check_graph
from divprune.export.graphs.progress import Progress
from divprune.export.output.cuda_graphs import write_cuda_graphs
from divprune.export.output.host_files import write_embeddings, write_host_files
from divprune.export.output.make_manifest import make_manifest
from divprune.export.output.staging import check_free_space, stage_directory
from divprune.export.output.summary import ExportSummary
from divprune.export.output.tensorrt_graphs import write_tensorrt_graphs
from divprune.export.planning.make_plan import make_plan
from divprune.export.planning.options import ExportOptions
from divprune.export.planning.plan import ExportPlan
from divprune.export.planning.room import check_room
from divprune.export.selection.in_llm_graph import write_in_llm_selection
from divprune.export.verify import check_onnxruntime, verify_export
from divprune.export.vision.graphs import write_vision_graphs
from divprune.runtime.directory.manifest import GraphSpec
from divprune.runtime.errors import CheckpointError, PromptError, UnsupportedError
from divprune.runtime.families import MediaKind
from divprune.runtime.generation.generation_config import load_token_rules
from divprune.runtime.inputs.chat_template import ChatTemplate, read_template
from divprune.runtime.inputs.messages import question, read_messages
from divprune.runtime.inputs.prompt import build_prompt
from divprune.runtime.inputs.tokenization import TextTokenizer
from divprune.runtime.memory import peak_rss

__all__ = ["ExportOptions", "export_model"]

_DECODER_STEPS = {
    "llm": "writing the LLM graph",
    "llm_prefill": "writing the LLM graph for prefill",
    "llm_decode": "writing the LLM graph for recorded steps",
    "llm_front": "writing the front of the LLM",
    "llm_back": "writing the back of the LLM",
}

logger = logging.getLogger(__name__)


def export_model(options: ExportOptions, progress: Progress | None = None) -> ExportSummary:
    """Export a checkpoint to an engine directory.

    Returns:
        What was written, for the summary at the end.

    Raises:
        DivPruneError: for anything the user can mend; nothing is left behind.
    """
    started = time.monotonic()
    progress = progress or Progress()
    output = options.output_directory()
    # First of all: a target that cannot be written must not cost a download.
    with stage_directory(output, force=options.force) as directory:
        source = resolve_model(options.model, options.revision)  # shows a download by itself
        with progress.step("reading the checkpoint"):
            plan = make_plan(options, source)
        if options.verify:
            check_onnxruntime(plan.dialect)
        check_free_space(directory, plan.estimated_bytes())
        # The cheap files before the large ones: a prompt that cannot work shows in seconds.
        write_host_files(plan.checkpoint.path, directory, plan.checkpoint.config, plan.tokenizer)
        prompt_text_tokens = _check_prompt(plan, directory)
        check_room(plan, prompt_text_tokens)
        graphs = _write_graphs(plan, directory, progress)
        with progress.step("writing the embeddings"):
            write_embeddings(directory, plan.weights)
        _check_nothing_left_out(plan)
        errors = verify_export(plan, directory, progress) if options.verify else None
        manifest = make_manifest(plan, directory, graphs, progress)
        (directory / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return ExportSummary(
        directory=output,
        manifest=manifest,
        prompt_text_tokens=prompt_text_tokens,
        verify_errors=errors,
        seconds=time.monotonic() - started,
        peak_memory=peak_rss(),
    )


def _write_graphs(plan: ExportPlan, directory: Path, progress: Progress) -> dict[str, GraphSpec]:
    graphs = write_vision_graphs(plan, directory, progress)
    further = [part for part in (plan.prefill_part, plan.decode_part) if part]
    for part in (*plan.decoder_parts(), *further):
        llm = write_decoder(plan.spec, plan.dialect_of(part), plan.weights_of(part), part)
        if part.name == "llm_decode":
            share_data(llm, directory / DECODER_FILES["llm"])
        path, what = DECODER_FILES[part.name], _DECODER_STEPS[part.name]
        graphs[part.name] = _save(plan, llm, directory, path, what, progress)
    if plan.in_llm is not None and plan.in_llm.inputs:
        between = write_in_llm_selection(plan, plan.in_llm)
        graphs["llm_selection"] = _save(
            plan, between, directory, "llm/selection.onnx", "writing the selection", progress
        )
    decoder = [part.name for part in plan.decoder_parts()]
    graphs |= write_cuda_graphs(plan, directory)
    return graphs | write_tensorrt_graphs(
        plan.lane,
        directory,
        plan.selector,
        plan.num_image_tokens,
        None if plan.varies else plan.num_kept,
        decoder,
    )


def _save(
    plan: ExportPlan,
    model: ir.Model,
    directory: Path,
    path: str,
    description: str,
    progress: Progress,
) -> GraphSpec:
    if plan.lane.limits is not None:
        check_graph(model, plan.lane.limits)
    save_graph(model, directory / path, description, progress)
    return describe_graph(model, path)


def _check_nothing_left_out(plan: ExportPlan) -> None:
    """A tensor that no graph used is a feature that no graph has."""
    may_stay = tuple(plan.family.unused_tensors())
    unused = [
        name for name in plan.weights.unused(plan.tensor_names) if not name.startswith(may_stay)
    ]
    if unused:
        raise UnsupportedError(
            "the checkpoint has weights that no graph knows",
            expected="every tensor used",
            found=", ".join(unused[:5]) + (" ..." if len(unused) > 5 else ""),
        )


def _check_prompt(plan: ExportPlan, directory: Path) -> int:
    """Make a prompt the way the runtime will; its length without visual tokens."""
    load_token_rules(directory / "generation_config.json")
    tokenizer = TextTokenizer.from_dir(directory)
    source = read_template(directory / "chat_template.jinja")
    picture = plan.runtime_family.prepare_image(Image.new("RGB", (640, 480)))
    template = ChatTemplate(source, tokenizer.special_tokens)
    conversation = read_messages(question("Describe the image.", [b"picture"]))
    _check_placeholder(plan, template, "image", plan.family.image_token_id)
    video_text = plan.runtime_family.placeholders.get("video")
    if video_text is not None and video_text == plan.facts["video_token"]:
        _check_placeholder(plan, template, "video", plan.family.video_token_id)
    prompt = build_prompt(
        conversation,
        [picture],
        plan.runtime_family.placeholders,
        template,
        tokenizer,
        [each for each in (plan.family.image_token_id, plan.family.video_token_id) if each],
    )
    return prompt.num_text_tokens


def _check_placeholder(
    plan: ExportPlan, template: ChatTemplate, kind: MediaKind, token_id: int | None
) -> None:
    """Tell a wrong number in config.json from a template that writes no placeholder at all.

    A wrong number may be that of another token that the template writes (``<|vision_start|>``).
    """
    words = {"image": "image|img", "video": "video"}[kind]
    content = [{"type": kind}, {"type": "text", "text": "Describe it."}]
    try:
        rendered = template.render([{"role": "user", "content": content}])
    except PromptError:
        if kind == "image":
            raise
        return  # a template for pictures alone
    written = [
        (token, number)
        for token, number in plan.tokenizer.get_added_vocab().items()
        if re.search(words, token, re.IGNORECASE) and token in rendered
    ]
    if len(written) == 1 and written[0][0] != plan.facts[f"{kind}_token"]:
        ((token, number),) = written
        config = plan.checkpoint.path / "config.json"
        # Of both, transformers takes the first.
        keys = (f"{kind}_token_id", f"{kind}_token_index")
        key = next((key for key in keys if key in read_json_object(config)), keys[0])
        if config.is_symlink() and config.readlink().is_absolute():
            config = config.readlink()  # beside an adapter: the link will be gone
        raise CheckpointError(
            f"{key} of config.json is not the token that the chat template writes for a {kind}",
            expected=f"{number} ({token})",
            found=f"{token_id} ({plan.facts[f'{kind}_token']})",
            fix=f"set {key} to {number} in {config}",
        )
