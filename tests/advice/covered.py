# ruff: noqa: E501  (the keys are quotations)
"""Which advice is followed by which test.

A new ``fix=`` belongs into one of these; ``test_sites.py`` fails until it is there.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ELSEWHERE", "FOLLOWED"]
__all__ += [
    "CHECKPOINTS",
    "CLUSTER",
    "COMMANDS",
    "DIRECTORIES",
    "ENGINES",
    "EXPORTS",
    "GPU",
    "HUB",
    "MEDIA",
    "ORIGINAL",
    "PACKAGES",
    "REPORTS",
    "SERVING",
    "WORDS",
]

COMMANDS: Mapping[str, str] = {
    # Case of test_commands.py: the advice that it provokes and follows.
    "numbers of everything": "runtime/generation/overlay.py::nothing_to_number::'leave --overlay-numbers out, or choose a smaller --keep'",
    "temperature": "runtime/generation/sampling.py::SamplingOptions.__post_init__::'--temperature 0.7, or leave it out for greedy decoding'",
    "top-p": "runtime/generation/sampling.py::SamplingOptions.__post_init__::'--top-p 0.9, or leave it out to draw from all tokens'",
    "seed": "runtime/generation/sampling.py::SamplingOptions.__post_init__::'--seed 0'",
    "top-k": "runtime/generation/sampling.py::SamplingOptions.__post_init__::'--top-k 50, or leave it out'",
    "min-p": "runtime/generation/sampling.py::SamplingOptions.__post_init__::'--min-p 0.05, or leave it out'",
    "repetition": "runtime/generation/sampling.py::SamplingOptions.__post_init__::'--repetition-penalty 1.1, or leave it out'",
    "sampling without temperature": "runtime/cli/model_options.py::check_answer_options::f'add --temperature 0.7, or leave {given} out'",
    "stop": "runtime/generation/stop_text.py::validate_stop::\"--stop '###', or leave it out\"",
    "threads": "runtime/backends/__init__.py::check_choice::'leave --threads out'",
    "percent": "runtime/directory/keep.py::validate_keep::guess",
    "keep above the exported": "runtime/generation/kept_tokens.py::_count::export_command(manifest, keep=keep)",
    "no baseline": "runtime/generation/kept_tokens.py::_require_baseline::export_command(manifest, baseline=True)",
    "longer cache": "runtime/directory/limits.py::shorten_cache::f'leave it out, or export again with --max-seq-len {max_seq_len}'",
    "numbers without overlay": "runtime/cli/overlay_files.py::check_overlay_options::'add --overlay out.png'",
    "empty question": "runtime/inputs/messages.py::_check_not_empty::'--prompt \"What is in this picture?\"'",
    "prefill of int8": "export/planning/options.py::ExportOptions._check_prefill_quant::'leave --prefill-quant out'",
    "prefill inside the LLM": "export/planning/options.py::ExportOptions._check_prefill_quant::'leave --prefill-quant out'",
    "int8 for TensorRT": "export/planning/options.py::ExportOptions._check_quant::'--target onnxruntime'",
    "tau of divprune": "export/planning/options.py::check_selector_flags::f'leave --{flag} out'",
    "seed of divprune": "export/planning/options.py::ExportOptions._check_effects::f'leave --{flag} out'",
    "method of no int4": "export/planning/options.py::ExportOptions._check_effects::f'leave --{flag} out'",
    "no baseline of itself": "export/planning/options.py::ExportOptions._check_effects::f'leave --{flag} out'",
    "no keep": "export/planning/options.py::check_selector_flags::'--keep 0.1 keeps 10 % of the visual tokens'",
    "positions inside the LLM": "export/planning/options.py::check_selector_flags::'leave --positions out'",
    "layer beyond the last": "export/planning/make_plan.py::_check_layer::f'--layer {max(1, num_layers // 2)}' if num_layers > 1 else None",
    "groups that do not divide": "runtime/directory/quant_scheme.py::check_divisible::fix or (f'--quant int4-g{fitting[0]}' if fitting else '--quant int8, or leave --quant out')",
    "size of fixed pictures": "runtime/families/llava.py::Llava.from_facts::'leave --max-image-tokens out'",
    "no room": "export/planning/room.py::check_room::_fitting(min(needed + _ANSWER, longest), needed, pruned)",
    "window": "export/planning/room.py::check_room::_fitting(longest, needed, pruned)",
    "overflow": "export/checkpoint/weights.py::check_range::'--dtype fp32'",
    "preset of plan": "runtime/reports/plan/source.py::find_model::f'divprune-plan {guess} if that was meant' if guess else None",
    "board": "configs/device.py::load_device::f'--board {guess[0]} if that was meant' if guess else None",
    "plan int8 for TensorRT": "runtime/reports/plan/settings.py::PlanSettings._check_target::'--target onnxruntime'",
    "bench prompt": "runtime/reports/bench/workload.py::check_prompt_tokens::f'--prompt-tokens {manifest.max_prefill_len // 2}, or leave it out'",
    "bench keep": "runtime/generation/kept_tokens.py::_count::export_command(manifest, keep=keep)",
    "eval metric": "runtime/reports/eval/metrics.py::check_answers::'--metric exact-match'",
    "quantised twice": "export/planning/make_plan.py::_check_quantized_once::'leave --quant out, or export the model that was quantised'",
    "quantised twice in a plan": "runtime/reports/plan/settings.py::PlanSettings.check::'leave --quant out'",
    "positions of three axes": "export/planning/make_plan.py::_positions::'leave --positions out'",
    "a grid without a corner": "export/selection/downsample.py::Downsample.count::'--selector divprune'",
    "no class token": "export/planning/signals.py::resolve_signals::'--selector divprune, or another that needs none'",
}

WORDS: Mapping[str, str] = {
    # Case of test_words.py: the advice that says in words what it does.
    "overlay on the picture": "runtime/cli/overlay_files.py::check_overlay_options::'choose another name'",
    "overlay inside the engine": "runtime/directory/safe_write.py::check_outside_models::f'choose another {option}'",
    "overlay in no folder": "runtime/directory/safe_write.py::_unwritable::f'choose another name for {option}'",
    "a conversation and a prompt": "runtime/cli/run.py::_check_options::'put them into the file'",
    "messages of another form": "runtime/inputs/messages.py::_wrong::f'messages look like {_EXAMPLE}'",
    "a placeholder in the prompt": "runtime/inputs/prompt.py::_check_texts::'leave it out of the text: the chat template places the pictures'",
    "frames without a video": "runtime/cli/run.py::_check_frames::f'add --video PATH, or leave {names} out'",
    "a video for a model of pictures": "runtime/generation/media_encoder.py::MediaEncoder.open::'give single frames as pictures, or export a model for videos such as llava-next-video-7b'",
    "text called a picture": "runtime/inputs/image_loading.py::_decoding::'convert it to JPEG or PNG; if it is one, it is damaged: get it again'",
    "a picture cut off": "runtime/inputs/image_loading.py::_decoding::'the picture is damaged or cut off: get it again'",
    "numbers of 32 bits": "runtime/inputs/image_loading.py::_keep_high_byte::'scale it to 8 or 16 bits a channel'",
    "floats of no scale": "runtime/inputs/image_loading.py::_scale_floats::'scale it to 8 or 16 bits a channel'",
    "a line that is no sample": "runtime/reports/eval/dataset.py::_bad_line::f'mend line {number} of {path}'",
    "a log of other questions": "runtime/reports/eval/log.py::_check_header::'name another --output directory, or start over with --force'",
    "a directory without a model": "export/checkpoint/source.py::_from_directory::'give the directory that holds config.json and the weights'",
    "a checkpoint called like a preset": "configs/__init__.py::refuse_ambiguous::f'{directory} for the directory, or {preset} for the preset'",
    "a question piped in": "runtime/cli/run.py::_read_prompt::\"echo 'What is it?' | divprune-run ENGINE_DIR picture.jpg --prompt -\"",
    "a picture piped in": "runtime/inputs/image_sources.py::_read_stdin::'divprune-run ENGINE_DIR - < picture.jpg'",
    "a log in use": "runtime/reports/eval/log.py::_open_locked::'wait for it, or name another --output directory'",
    "an output that is there": "export/output/staging.py::check_target::fix",
    "an output that is no export": "export/output/staging.py::check_target::f'choose another --output, or delete it: rm -r {shlex.quote(str(target))}'",
    "an output below a file": "export/output/staging.py::_output_errors::'choose another --output'",
    "a directory in another encoding": 'runtime/directory/path_text.py::check_utf8::f"{fix}; if it is UTF-8, set the terminal\'s encoding: LC_ALL=C.UTF-8"',
    "a prompt in another encoding": 'runtime/inputs/messages.py::_text::"check the terminal\'s encoding (LANG, LC_ALL)"',
    "a prompt that is too long": "runtime/directory/limits.py::answer_limit::_ways_out(manifest)",
    "an overlay too wide for its format": "runtime/cli/overlay_files.py::write_overlay::'choose a name for --overlay that ends in .png'",
    "a picture that is one line": "runtime/inputs/image_processor.py::_check_pixels::'crop or scale the picture first'",
    "two directories of one name": "runtime/reports/eval/plan.py::plan_runs::'rename one of them'",
    "a log that is none": "runtime/reports/eval/log.py::_no_log::'name another --output directory, or start over with --force'",
    "a cache too small for a picture": "runtime/reports/plan/settings.py::PlanSettings.check::'a larger --max-seq-len or a smaller --keep'",
    "a keep that nobody serves": "runtime/reports/eval/plan.py::plan_runs::'export one with this --keep, or leave it out'",
}

CHECKPOINTS: Mapping[str, str] = {
    # Case of test_checkpoints.py: the advice by which a checkpoint is mended.
    "a shard that is missing": "export/checkpoint/files.py::_indexed_files::'download the checkpoint again'",
    "an index without shards": "export/checkpoint/files.py::_indexed_files::'download the checkpoint again'",
    "no weights": "export/checkpoint/files.py::weight_files::'download the checkpoint again'",
    "a config cut off": "export/checkpoint/files.py::read_json_object::fix",
    "a shard cut off": "export/checkpoint/tensor_file.py::stored_tensors::'download the file again'",
    "a config of another model": "export/checkpoint/checkpoint.py::Checkpoint.validate::'download the checkpoint again, or correct config.json'",
    "two layouts of keys": "export/checkpoint/checkpoint.py::_twice::'download the checkpoint again into an empty directory'",
    "a value out of range": 'runtime/directory/config_ranges.py::_out_of_range::"correct it in the checkpoint\'s config.json, or download the checkpoint again"',
    "a head that is not tied": 'export/checkpoint/checkpoint.py::Checkpoint._resolve_tied_head::"set tie_word_embeddings to false in the checkpoint\'s config.json, in text_config as well"',
    "no tokenizer": "export/checkpoint/preprocessing.py::no_tokenizer::'pip install sentencepiece, which converts tokenizer.model' if old else 'copy both files of the original model into the directory'",
    "a tokenizer of another model": "export/planning/make_plan.py::_facts::'copy tokenizer.json and tokenizer_config.json of the model into the directory'",
    "no image processor": "export/checkpoint/preprocessing.py::read_preprocessor_config::'copy preprocessor_config.json of the original model into the directory'",
    "no chat template": 'export/output/host_files.py::_chat_template::"write the model\'s template to chat_template.jinja there"',
    "no end of an answer": 'export/output/host_files.py::_generation_config::"write it to the checkpoint\'s generation_config.json"',
    "a weight that is no number": "export/checkpoint/weights.py::check_range::'download the checkpoint again'",
    "packed, but not how": "export/checkpoint/checkpoint.py::_packed_layers::'copy quantize_config.json or quant_config.json into quantization_config there'",
    "not packed": "export/checkpoint/packed_layers.py::find_packed_layers::'download the checkpoint again, or remove quantization_config'",
    "scales of another size": "export/checkpoint/packed_layers.py::_check_parts::_FIX",
    "groups of another size": "export/checkpoint/quantization/packed_format.py::_unsupported::_FIX",
    "groups that do not divide": "runtime/directory/quant_scheme.py::check_divisible::fix or (f'--quant int4-g{fitting[0]}' if fitting else '--quant int8, or leave --quant out')",
    "act-order": "export/checkpoint/packed_layers.py::_layer::'use a checkpoint quantised with desc_act false, or --quant int4 on the model that was quantised'",
    "three bits": "export/checkpoint/quantization/packed_format.py::_unsupported::_FIX",
    "no planes of features": 'export/families/qwen3_vl.py::Qwen3VLFamily.check::"copy config.json from the model\'s repository"',
    "a processor of another family": "runtime/families/_tiles.py::check_processor::'copy preprocessor_config.json of the original model into the checkpoint'",
    "a processor that says too little": "runtime/families/_tiles.py::require::'copy preprocessor_config.json of the original model into the checkpoint'",
    "tiles of another size": "runtime/families/internvl.py::_check_size::'copy preprocessor_config.json of the original model into the checkpoint'",
    "crops of another size": "runtime/families/smolvlm.py::_check_crop::'copy preprocessor_config.json of the original model into the checkpoint'",
    "an adapter of another model": "export/checkpoint/adapter.py::Adapter.check::'put the adapter on the model that it was trained on'",
    "an adapter on packed weights": "export/checkpoint/adapter.py::Adapter.check::'put the adapter on the model that was not quantised'",
    "half an adapter": "export/checkpoint/adapter.py::_delta::'save the adapter again, or download it again'",
    "a pickle cut off": "export/checkpoint/pickle_file.py::_damaged::'download the file again'",
    "weights from before torch 1.6": "export/checkpoint/pickle_file.py::_to_be_rewritten::f'''python -c \"import os, torch; found = torch.load({str(file)!r}, map_location='cpu', weights_only=True); torch.save({{k: v.contiguous() for k, v in found.items()}}, {new!r}); os.replace({new!r}, {str(file)!r})\"'''",
    "an adapter without weights": "export/checkpoint/adapter.py::_no_weights::'download the adapter again, or remove adapter_config.json to export without it'",
    "an adapter of nothing": 'export/checkpoint/adapter_source.py::base_of_adapter::f"write the model\'s directory or hub id there, in {config}"',
    "an adapter of a model elsewhere": "export/checkpoint/source.py::_with_base::f\"write the model's directory to base_model_name_or_path in {adapter / 'adapter_config.json'}\"",
    "an adapter of an adapter": "export/checkpoint/source.py::_with_base::'merge the first adapter into its model, and name that in adapter_config.json'",
    "an adapter that is no LoRA": "export/checkpoint/adapter.py::_unsupported::_MERGE.format(base=base or 'MODEL', path=str(directory))",
    "a processor that is unknown": "runtime/inputs/image_processor.py::_processor_type::'copy preprocessor_config.json of the original model into the checkpoint'",
    "a placeholder of another number": "export/export_model.py::_check_placeholder::f'set {key} to {number} in {config}'",
}


DIRECTORIES: Mapping[str, str] = {
    # Case of test_directories.py: the advice by which an engine directory is mended.
    "a file of another size": "runtime/directory/engine_directory.py::_check_size::f'copy the directory again, or {fix}'",
    "a file of other bytes": "runtime/directory/engine_directory.py::_check_hash::f'copy the directory again, or {fix}'",
    "a manifest cut off": "runtime/directory/engine_directory.py::read_manifest::fix if error.fix == RE_EXPORT else error.fix",
    "a manifest in another encoding": "runtime/directory/engine_directory.py::read_manifest::fix",
    "a manifest with a wrong type": "runtime/directory/engine_directory.py::read_manifest::fix if error.fix == RE_EXPORT else error.fix",
    "a manifest with a wrong value": "runtime/directory/manifest_json.py::FieldError.inside::self.fix",
    "a manifest without a graph": "runtime/backends/__init__.py::_require_graphs::'export the model again with divprune-export'",
    "a manifest of other graphs": "runtime/backends/onnxruntime/session.py::_other_graph::'export the model again with divprune-export'",
    "facts of another family": "runtime/families/__init__.py::load_family::fix",
    "a processor without a name": "runtime/inputs/image_processor.py::_processor_type::'copy preprocessor_config.json of the original model into the checkpoint'",
    "a table that is none": "runtime/generation/embeddings.py::_damaged::'export the model again with divprune-export'",
    "a table of another model": "runtime/pipeline.py::Pipeline._check_parts::'export the model again with divprune-export'",
    "generation config cut off": "runtime/generation/generation_config.py::_read::'export the model again'",
    "generation config without an end": 'runtime/generation/generation_config.py::_eos_token_ids::"add eos_token_id to the checkpoint\'s generation_config.json and export again"',
    "generation config with a word": "runtime/generation/generation_config.py::_Reader.get::_FIX",
    "generation config that bars all": "runtime/generation/sampling.py::Sampler.__call__::'mend generation_config.json in the checkpoint and export again'",
    "a template that is none": "runtime/inputs/chat_template.py::ChatTemplate.__init__::_FIX",
    "a template that fails": "runtime/inputs/chat_template.py::ChatTemplate.render::_FIX",
    "a template in another encoding": "runtime/inputs/chat_template.py::read_template::_FIX",
    "a template without pictures": "runtime/inputs/prompt.py::_wrong_number::f'put pictures into messages of a role whose content the template writes (user), or export again with a chat_template.jinja that writes the placeholder for entries of type \"{kind}\"'",
    "a tokenizer that is none": "runtime/inputs/tokenization.py::_damaged::_FIX",
    "a tokenizer config cut off": "runtime/inputs/tokenization.py::_read_config::_FIX",
    "a tokenizer of letters": "runtime/inputs/prompt.py::build_prompt::'export again from a checkpoint whose tokenizer belongs to the model'",
    "a file that was not exported": "runtime/directory/engine_directory.py::EngineDirectory.file::export_command(self.manifest, self.path)",
    "a file that nobody listed": "runtime/directory/engine_directory.py::_check_listed::f'remove it, or {fix}'",
    "a link out of the directory": "runtime/directory/engine_directory.py::_regular_file::f'if you trust it, make a copy without links: cp -rL {shlex.quote(str(root))} COPY'",
    "no directory: none": "runtime/directory/engine_directory.py::_existing_directory::_WRITE",
    "no directory: a file": "runtime/directory/engine_directory.py::_existing_directory::_WRITE",
    "an interrupted export": "runtime/directory/engine_directory.py::_existing_directory::'export again, which also removes it'",
    "a file that was replaced": "runtime/directory/engine_directory.py::EngineDirectory.require_unchanged::'start again with the directory as it is now'",
    "a tokenizer that fails": "runtime/inputs/tokenization.py::TextTokenizer.encode::'another prompt; if it is every one, repair tokenizer.json in the checkpoint and export again'",
    "a tokenizer that is missing": "runtime/inputs/tokenization.py::TextTokenizer.from_dir::_FIX",
    "a token without a row": "runtime/generation/embeddings.py::EmbeddingTable._no_row::'leave it out of the prompt, or give the model a row for it (resize_token_embeddings, and training) and export again'",
}

ORIGINAL: Mapping[str, str] = {
    # Case of test_original_layout.py: the advice about checkpoints of original code.
    "a tower that is nowhere": 'export/checkpoint/source.py::_find_tower::"write the tower\'s directory or hub id to mm_vision_tower in config.json"',
    "no tower": 'runtime/families/_original_llava.py::tower_name::\'write it there, for LLaVA-1.5: "mm_vision_tower": "openai/clip-vit-large-patch14-336"\'',
    "a tower without its processor": "export/checkpoint/original/llava.py::_processor::'download the tower again, with its preprocessor_config.json'",
    "a LoRA that is not merged": "runtime/families/_original_internvl.py::_lora::'merge it with the original InternVL code, in its folder internvl_chat: python tools/merge_lora.py CHECKPOINT MERGED'",
    "a tokenizer without pictures": 'export/checkpoint/original/internvl.py::_image_token_id::"copy the tokenizer\'s files of the model that it was fine-tuned from into the checkpoint: tokenizer.json and tokenizer_config.json, or vocab.json, merges.txt, added_tokens.json and tokenizer_config.json"',
    "a conversation of one's own": "export/checkpoint/original/internvl.py::_write_template::f'write the conversation to chat_template.jinja in the checkpoint, with {picture} where a picture stands'",
}

EXPORTS: Mapping[str, str] = {
    # Case of test_exports.py: the advice from inside an export.
    "a disk that is full": "export/output/staging.py::check_free_space::'free some space, or choose another disk with --output'",
    "a disk that fills up": "export/output/staging.py::_disk_full_error::'free some space, or choose another disk with --output'",
    "a selector for one size": "export/selection/selection_graph.py::_sizes::'--selector divprune'",
    "a graph beyond a target": "export/graphs/lanes.py::check_graph::'choose another --target or --selector'",
    "features beyond fp16": "export/selection/checks.py::check_finite::'export with --dtype fp32 if the checkpoint overflows fp16'",
    "a file cut off meanwhile": "export/checkpoint/tensor_file.py::_read_into::'download the file again'",
    "a selector of no name": "export/selection/__init__.py::get_selector::'pass --selector with one of these names'",
    "a cache that is full": "runtime/backends/onnxruntime/decoder.py::DecoderSession._require_room::'ask for fewer tokens, or take a larger --max-seq-len'",
    "one size for any picture": "export/families/_anyres_base.py::AnyresBase.resized_vision_module::'--max-image-tokens bounds the size of its pictures'",
}

MEDIA: Mapping[str, str] = {
    # Case of test_media.py: the advice about pictures and videos.
    "more frames than a directory takes": "runtime/families/_frames.py::FramesFamily.prepare_video::f'export again with --max-image-tokens {self._frame_tokens(wanted)}' if wanted > 1 else None",
    "more frames than tiles": "runtime/families/internvl.py::InternVL.prepare_video::f'--num-frames {self.max_crops}, or export with --max-image-tokens {len(indices) * self.tile_tokens}'",
    "too few tokens for a tile": "runtime/families/internvl.py::InternVL.from_facts::f'--max-image-tokens {_crops(fewest) * tokens}'",
    "more frames than crops": "runtime/families/smolvlm.py::SmolVLM._too_many_frames::f'--num-frames {self.max_crops}, or export with --max-image-tokens {frames * self.crop_tokens}'",
    "too few tokens for a crop": "runtime/families/smolvlm.py::SmolVLM.from_facts::f'--max-image-tokens {crop_side ** 2}'",
    "nothing says how many frames": "runtime/families/_smolvlm_video.py::VideoSampling.from_config::'--num-frames 8'",
    "frames without a time, smolvlm": "runtime/families/_smolvlm_video.py::need_fps::'--fps 1 if the frames are a second apart'",
    "frames without a time, qwen": "runtime/families/_qwen_vision.py::_frames_a_second::'--fps 1, if a second lies between two frames'",
    "a directory without a video processor": "runtime/families/_qwen_vision.py::QwenVision.prepare_video::'export again from a checkpoint that has it'",
    "a ribbon, qwen": "runtime/families/_qwen_pixels.py::fit_size::'crop the picture first'",
    "a ribbon for a small export": "runtime/families/_qwen_vision.py::QwenVision._picture_size::'crop the picture, or export with a larger --max-image-tokens'",
    "a video for LLaVA-1.5": "runtime/families/llava.py::Llava.prepare_video::'give single frames as pictures, or export a model for videos such as llava-next-video-7b'",
    "a video for LLaVA-1.6": "runtime/families/llava_next.py::LlavaNext.prepare_video::'give single frames as pictures, or export a model for videos such as llava-next-video-7b'",
    "too few tokens for a grid": "runtime/families/_anyres.py::Grids.within::f'--max-image-tokens {smallest}'",
    "an array of floats": "runtime/inputs/image_loading.py::_from_array::'scale it to uint8 from 0 to 255 and put the channels last'",
    "a picture of another mode": "runtime/inputs/image_processor.py::ImageProcessor.to_rgb::'open it with divprune.runtime.inputs.image_loading.load_image'",
    "too many pixels": "runtime/inputs/image_loading.py::_too_many_pixels::'scale the picture down first'",
    "a long data URI": "runtime/inputs/image_sources.py::_too_long::'save it as a file and pass its path'",
    "a URL of nothing": "runtime/inputs/download.py::download::'check the URL and the network, or download the picture and pass its path'",
    "a long download": "runtime/inputs/download.py::_read::'save it as a file and pass its path'",
    "a damaged video": "runtime/inputs/video.py::_damaged::'the video is damaged or of another kind: get it again'",
    "a video that ends early": "runtime/inputs/video.py::LazyFrames._decode::'the video is damaged or cut off: get it again'",
    "a codec without a decoder": "runtime/inputs/video.py::_video_stream::'ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4'",
    "a picture called a video": "runtime/inputs/video.py::_open_file::'give it as a picture, not as a video'",
    "frames of two sizes": "runtime/inputs/video.py::_open_folder::'scale the frames to one size, or take other pictures out of the folder'",
}

PACKAGES: Mapping[str, str] = {
    # Case of test_packages.py: the advice to install what is missing.
    "ray": "runtime/serving/batch/cluster.py::import_ray::\"pip install 'divprune-edge[batch]', or leave --workers and --address out\"",
    "pyarrow": "runtime/serving/batch/table.py::import_pyarrow::\"pip install 'divprune-edge[batch]'\"",
    "starlette": "runtime/serving/server.py::require_packages::\"pip install 'divprune-edge[serve]'\"",
    "uvicorn": "runtime/serving/server.py::require_packages::\"pip install 'divprune-edge[serve]'\"",
    "onnxscript": "export/cli.py::_require_export_packages::'pip install \"divprune-edge[export]\"'",
    "onnxruntime": "runtime/backends/onnxruntime/session.py::require_onnxruntime::install",
    "av": "runtime/inputs/video.py::_pyav::'pip install \"divprune-edge[video]\", or give a folder of frames or a GIF'",
    "ray serve": "runtime/serving/ray_app.py::build::\"pip install 'ray[serve]'\"",
    "pillow-heif": "runtime/inputs/image_loading.py::_register_heif::'pip install pillow-heif, or save the picture as JPEG'",
    "an old onnxruntime": "runtime/backends/onnxruntime/session.py::_require_version::f'pip install --upgrade \"{_PACKAGES[device]}>={minimum}\"'",
    "an old onnxruntime at export": "export/verify/__init__.py::check_onnxruntime::f'pip install --upgrade \"onnxruntime>={dialect.min_onnxruntime}\", or skip the check with --no-verify'",
    "a graph of a later opset": "runtime/backends/onnxruntime/session.py::open_session::f'pip install --upgrade {_PACKAGES[device]}' if is_graph else export_command(directory.manifest, directory.path)",
    "a selector that does not load": "export/selection/__init__.py::_load_installed::f'pip install --upgrade {package}, or take another --selector'",
    "a family of a package": "runtime/families/__init__.py::family_class::'install the divprune-edge, or the package with this family, that the export used'",
    "an image processor of a package's family": "export/checkpoint/preprocessing.py::_own_processor::'copy preprocessor_config.json of the original model into the directory'",
    "a newer manifest": "runtime/directory/manifest.py::_check_schema_version::'install the divprune-edge that wrote it, or a newer one' if newer else RE_EXPORT",
}

REPORTS: Mapping[str, str] = {
    # Case of test_reports.py: the advice about reports of a benchmark.
    "reports of other work": "runtime/reports/bench/compare.py::require_same_work::'run divprune-bench with the same engine, --keep, --image, --prompt, --prompt-tokens and --max-new-tokens'",
    "a damaged report": "runtime/reports/bench/report.py::Report.from_json::'write the report again: divprune-bench ENGINE_DIR --output REPORT.json'",
    "a newer report": "runtime/reports/bench/report.py::_check_schema_version::'install the divprune-edge that wrote it, or a newer one' if newer else None",
}

SERVING: Mapping[str, str] = {
    # Case of test_serving.py: the advice of the server and of batches.
    "a column of another name": "runtime/serving/batch/table.py::_missing_column::'--image-column, --key-column and --prompt-column name the columns'",
    "two rows of one key": "runtime/serving/batch/table.py::Table.checked_keys::'--key-column COLUMN names the column that tells rows apart'",
    "a row without a key": "runtime/serving/batch/table.py::Table._key::'--key-column COLUMN names the column that tells rows apart'",
    "an output of another run": "runtime/serving/batch/answers.py::_compare::'name another OUTPUT, or run with the same settings to go on'",
    "a damaged part": "runtime/serving/batch/answers.py::_read_part::'remove it and run again'",
    "a port that is taken": "runtime/serving/server.py::bind::'choose another --port (0 takes any that is free), or another --host'",
    "a short key": "runtime/serving/options.py::ServerOptions.__post_init__::'--api-key \"$(openssl rand -hex 24)\"'",
    "ray without a directory": "runtime/serving/ray_app.py::RayOptions.read::'engine_dir=/path'",
    "no server": "runtime/reports/bench/server_load.py::_Server.first_model::'divprune-serve ENGINE_DIR'",
    "a report of a server": "runtime/cli/bench.py::_measure_server::'--json > FILE'",
    "a network without a key": "runtime/cli/serve.py::_check_exposure::f'{_KEY_VARIABLE}=\"$(openssl rand -hex 24)\" divprune-serve ...'",
    "encoding ahead": "runtime/cli/serve.py::_check_ahead::'leave --encode-ahead out'",
}

CLUSTER: Mapping[str, str] = {
    # Case of test_cluster.py: the advice about workers on a Ray cluster.
    "nobody at the address": "runtime/serving/batch/cluster.py::_connect::_start_command(cluster.address) if nobody_there else None",
    "a folder that Ray cannot use": "runtime/serving/batch/cluster.py::_connect::'leave --workers out, or set RAY_TMPDIR to a folder with a short path that can be written to'",
    "no room for a worker": "runtime/serving/batch/cluster.py::_check_room::'ask for less (--cpus-per-worker, --gpus-per-worker), or ray start --num-cpus N --num-gpus N on a machine where Ray does not see what there is'",
    "workers that all die": "runtime/serving/batch/handout.py::_all_die::'see that the engine directory has the same path on every machine, and that a worker has memory enough (fewer --workers)'",
}

HUB: Mapping[str, str] = {
    # Case of test_hub.py: the advice about a model hub and what was downloaded from it.
    "nothing in the cache": "export/checkpoint/hub.py::_hub_error::download_command(model_id, revision)",
    "a hub that fails": "export/checkpoint/hub.py::_hub_error::download_command(model_id, revision)",
    "a copy that is not whole": "export/checkpoint/source.py::_from_hub::download_command(model_id, revision)",
    "a repository of another kind": "export/checkpoint/source.py::_from_hub::f'give the model that this one was made from: {page_of(model_id)} names it'",
    "a gated model": "export/checkpoint/hub.py::_hub_error::fix",
    "a model that the hub does not show": "export/checkpoint/hub.py::_hub_error::fix",
    "an id that no hub allows": "export/checkpoint/hub.py::_hub_error::nearest_preset(model_id)",
    "a misspelt preset": "configs/__init__.py::load_preset::f'{guess} if that was meant' if guess else None",
    "a plan of what is not in the cache": "runtime/reports/plan/source.py::_cached_config::('HF_HUB_OFFLINE=0 ' if switched_off else '') + f'hf download {hub_id} config.json'",
}

ENGINES: Mapping[str, str] = {
    # Case of test_engines.py or test_builds.py: the advice about engines, their library and what builds them.
    "threads": "runtime/backends/tensorrt/backend.py::_find_engines::'leave it out'",
    "no GPU to run on": "runtime/backends/tensorrt/backend.py::_find_engines::'run on the device, or export for the CPU: ' + export_command(directory.manifest, target='onnxruntime')",
    "no memory left": "runtime/backends/cuda/cuda.py::out_of_memory::'close other programs, export with a smaller --max-seq-len (with --no-baseline it may be smaller) or with --quant int4, or run divprune-build with --weight-streaming'",
    "an engine that is not taken": "runtime/backends/tensorrt/engine.py::Engine._refusal::f'{session.build_command} --force'",
    "an engine of another graph": "runtime/backends/tensorrt/engine.py::Engine.__init__::f'{session.build_command} --force'",
    "engines that do not fit": "runtime/backends/tensorrt/engine_record.py::Problem.error::fix",
    "a cache that is full": "runtime/backends/tensorrt/decoder_part.py::DecoderPart.require_room::'ask for fewer tokens, or export with a larger --max-seq-len'",
    "a disk that is full": "runtime/backends/tensorrt/lane_folder.py::check_free_space::'free some space, or move the engine directory to another disk'",
    "a directory of somebody else": "runtime/backends/tensorrt/lane_folder.py::stage_lane::'copy the engine directory to a place of your own'",
    "a file called engines": "runtime/backends/tensorrt/lane_folder.py::stage_lane::f'give it another name: mv {shlex.quote(str(lane.parent))} NAME'",
    "no memory to build in": "runtime/backends/tensorrt/build/build_engine.py::_build_error::f'{smaller}close other programs (on a Jetson the desktop: sudo systemctl isolate multi-user.target), add swap, or export with a smaller --max-seq-len'",
    "too little workspace": "runtime/backends/tensorrt/build/build_engine.py::_build_error::f'--workspace {max(256, 2 * limit)}, or if that does not help: ' + _other_graph(library, manifest, task.graph)",
    "a graph that is not built": "runtime/backends/tensorrt/build/build_engine.py::_build_error::_other_graph(library, manifest, task.graph)",
    "a graph that is not parsed": "runtime/backends/tensorrt/build/build_engine.py::build_engine::_other_graph(library, directory.manifest, task.graph)",
    "a graph with another input": "runtime/backends/tensorrt/build/parse.py::_check_names::'export the model again with divprune-export'",
    "graphs that nobody knows": "runtime/backends/tensorrt/build/build_plan.py::_require_known_graphs::'export with another --selector, or ' + export_command(manifest, target='onnxruntime')",
    "a size without a range": "runtime/backends/tensorrt/profiles.py::varying_dims::'export the model again with divprune-export'",
    "a directory of another runtime": "runtime/backends/tensorrt/library.py::require_tensorrt::f\"{export_command(manifest, target='tensorrt')}; divprune-run needs no build for this one\"",
    "no library": "runtime/backends/tensorrt/library.py::require_tensorrt::install_command(name)",
    "a dialect of another runtime": "runtime/backends/tensorrt/library.py::_require_version::export_command(manifest)",
    "an old library": "runtime/backends/tensorrt/library.py::_require_version::f\"{export_command(manifest, target='jetpack6')}, which TensorRT 10.3 takes\" if older else install_command(library.name)",
    "no GPU to build on": "runtime/backends/tensorrt/surroundings.py::_no_gpu::'copy the directory to the device and run divprune-build there'",
    "no GPU to build for": "runtime/backends/tensorrt/surroundings.py::_no_gpu::'name it: --target-cc 89 (GeForce RTX 40), 86 (RTX 30), 120 (RTX 50)'",
    "a GPU that is not known": "runtime/backends/tensorrt/surroundings.py::_require_known::'export with --target tensorrt for other GPUs, or with --target jetpack6 for JetPack 6'",
    "a GPU elsewhere": "runtime/backends/tensorrt/surroundings.py::target_capabilities::'build on the device itself; --target tensorrt-rtx can be built ahead of time'",
}

GPU: Mapping[str, str] = {
    # Case of test_gpu.py: the advice about kernels, CUDA and onnxruntime-gpu.
    "a GPU without clusters": "plugins/many_blocks.py::open_module::f'{VARIABLE}=grid'",
    "an old driver": "plugins/driver.py::Driver.call::'update the NVIDIA driver, on a Jetson with JetPack 6.1 or later'",
    "no driver": "plugins/driver.py::_load_library::'run on a machine with an NVIDIA GPU and its driver'",
    "more tokens than the kernel holds": "plugins/node.py::plan_launch::'build from vision/model.onnx, which selects with an ONNX Loop'",
    "a kernel that is missing": "plugins/ptx.py::read_ptx::'install divprune-edge anew, or run python -m divprune.plugins.compile_ptx'",
    "the reductions that are missing": "runtime/backends/cuda/kernels.py::_read_ptx::f'install divprune-edge anew, or run python -m divprune.plugins.compile_ptx --source {shlex.quote(str(SOURCE_FILE))}'",
    "a kernel that was changed": "plugins/compile_ptx.py::_compile::shlex.join(['python', '-m', 'divprune.plugins.compile_ptx', *options])",
    "no compiler": "plugins/nvrtc.py::_find_library::_INSTALL",
    "another compiler": "plugins/nvrtc.py::Nvrtc.__init__::_INSTALL",
    "no cuda-python": "runtime/backends/cuda/cuda.py::open_cuda::_INSTALL",
    "a newer cuda-python": "runtime/backends/cuda/cuda.py::Cuda._error::_INSTALL",
    "cuda-python without a driver": "runtime/backends/cuda/cuda.py::open_cuda::'run on a machine with an NVIDIA GPU and its driver'",
    "an onnxruntime without CUDA": "runtime/backends/onnxruntime/session.py::_require_provider::f'pip uninstall -y onnxruntime onnxruntime-gpu && {install}, or ask for --device cpu'",
    "an onnxruntime-gpu without its libraries": "runtime/backends/onnxruntime/session.py::_check_started_on::f'pip install \"divprune-edge[{_EXTRAS[device]}]\", which brings the CUDA and cuDNN of onnxruntime-gpu, update the NVIDIA driver, or ask for --device cpu'",
    "a precision without kernels": "runtime/backends/onnxruntime/session.py::require_precision::f'{export_command(mended, output)}, or ask for --device cpu'",
    "a dialect of another device": "runtime/backends/onnxruntime/session.py::require_onnxruntime::export_command(manifest, target='onnxruntime')",
}

FOLLOWED = (COMMANDS, WORDS, CHECKPOINTS, DIRECTORIES, EXPORTS, MEDIA, ORIGINAL, PACKAGES, REPORTS)
FOLLOWED += (SERVING, CLUSTER, HUB, ENGINES, GPU)

ELSEWHERE: Mapping[str, str] = {
    # Advice: the test that follows it.
    'export/verify/comparison.py::compare::"report this with the model\'s config.json; --dtype fp32 tells whether fp16 is the cause"': "tests/advice/test_overflow.py",
    "runtime/generation/media_encoder.py::MediaEncoder._check_size::'give a smaller picture or fewer frames, or export again with a larger --max-image-tokens' if too_many else 'give a larger picture or more frames'": "tests/runtime/test_bad_media.py",
    "runtime/serving/batch/cluster.py::answer_on_cluster::'run the same command again: it goes on where it was'": "tests/runtime/serving/batch/test_cluster.py",
    "export/verify/activations.py::check_half::'--dtype fp32'": "tests/advice/test_overflow.py",
    "runtime/generation/kept_tokens.py::_check_finite::'export again with --dtype fp32'": "tests/advice/test_overflow.py",
    "runtime/generation/sampling.py::Sampler.__call__::'export again with --dtype fp32'": "tests/advice/test_overflow.py",
    "plugins/feature_selection.py::FeatureSelection.launch::f'{SIMILARITIES}=float32'": "tests/runtime/backends/onnxruntime/test_selection_kernel.py",
    "plugins/environment.py::read_choice::f'{variable}={choices[0]}, or leave it out'": "tests/runtime/backends/onnxruntime/test_selection_kernel.py",
    "export/planning/room.py::check_room::_fitting(longest, needed, pruned)": "tests/export/planning/test_room.py",
    "export/planning/room.py::check_room::_fitting(min(needed + _ANSWER, longest), needed, pruned)": "tests/export/planning/test_room.py",
    "runtime/generation/kept_tokens.py::_count::'leave --keep out'": "tests/end_to_end/test_inside_the_llm.py",
    "export/checkpoint/source.py::_find::nearest_preset(model)": "tests/export/checkpoint/test_source.py",
    "export/checkpoint/hub.py::_hub_error::f'take a branch, tag or commit from {url}/commits/main'": "tests/export/checkpoint/test_source.py",
}
