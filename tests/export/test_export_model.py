"""The export from end to end: manifest, self-check, full disks and signals."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import pytest
from PIL import Image

from checkpoints import TINY_CHECKPOINTS
from divprune.export import export_model as module
from divprune.export.cli import main
from divprune.export.decoder.dialects import OrtDialect
from divprune.export.export_model import export_model
from divprune.export.graphs.progress import Advance, Progress
from divprune.export.graphs.writer import GraphWriter
from divprune.export.output.summary import ExportSummary
from divprune.export.planning.options import ExportOptions
from divprune.export.selection.divprune import DivPrune
from divprune.runtime import Pipeline
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import MANIFEST_NAME, KVCacheSpec, Manifest
from divprune.runtime.errors import (
    EngineDirectoryError,
    NumericalError,
    OptionError,
    UnsupportedError,
)

CHECKPOINT = "clip-llama-hub"  # that of the fixture engine_dir
TIED = "siglip-qwen2-v4-tied"
# Everything is real up to the check, which says that it was reached and waits there.
WAITING_EXPORT = """
import sys, time
from divprune.export import export_model
def wait(*_):
    print("checking", flush=True)
    time.sleep(60)
export_model.verify_export = wait
from divprune.export.cli import main
sys.exit(main())
"""


class Steps(Progress):
    """Remembers the steps of an export."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int | None, int]] = []

    @contextlib.contextmanager
    def step(
        self, description: str, total: int | None = None, *, unit: str = "bytes"
    ) -> Iterator[Advance]:
        advances: list[int] = []
        yield advances.append
        self.done.append((description, total, sum(advances)))


@pytest.fixture(scope="module")
def tied(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExportSummary, Steps]:
    """An unchecked fp16 export without baseline of a model with tied embeddings."""
    output, steps = tmp_path_factory.mktemp("tied") / "engine", Steps()
    options = ExportOptions(
        model=str(checkpoint(TIED)),
        keep=0.25,
        output=output,
        positions="original",
        max_seq_len=128,
        baseline=False,
        verify=False,
    )
    return output, export_model(options, steps), steps


def read(directory: Path) -> Manifest:
    return EngineDirectory.open(directory, verify="full").manifest


def options_for(checkpoint: Path, output: Path, **fields: object) -> ExportOptions:
    return ExportOptions(model=str(checkpoint), keep=0.1, output=output, **fields)  # type: ignore[arg-type]


def options_on_command_line(checkpoint: Path, output: Path) -> list[str]:
    options = ["--model", checkpoint, "--keep", 0.1, "--dtype", "fp32", "--output", output]
    return list(map(str, options))


# The manifest


def test_every_file_is_listed_with_its_size_and_hash(engine_dir: Path) -> None:
    found = {
        path.relative_to(engine_dir).as_posix(): path
        for path in engine_dir.rglob("*")
        if path.is_file() and path.name != MANIFEST_NAME
    }
    files = read(engine_dir).files
    assert files.keys() == found.keys()
    assert files.keys() == {
        "chat_template.jinja",
        "embed_tokens.safetensors",
        "generation_config.json",
        "llm/model.onnx",
        "llm/model.onnx.data",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vision/model.onnx",
        "vision/model.onnx.data",
        "vision/selection.onnx",
    }
    for name, path in found.items():
        assert files[name].size == path.stat().st_size
        assert files[name].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_manifest_says_what_was_asked_for(engine_dir: Path) -> None:
    manifest = read(engine_dir)
    spec = TINY_CHECKPOINTS[CHECKPOINT]
    selector = manifest.selector
    assert (selector.name, selector.version) == ("divprune", DivPrune.version)
    assert (selector.keep, selector.num_kept) == (0.1, 5)
    assert selector.num_image_tokens == spec.num_image_tokens == 49
    assert (selector.nested, selector.merges, selector.inside_llm) == (True, False, False)
    assert selector.positions == "contiguous"
    assert (manifest.target, manifest.dialect, manifest.quant) == ("onnxruntime", "ort", None)
    assert (manifest.dtype, manifest.baseline, manifest.verified) == ("fp32", True, True)
    assert (manifest.max_seq_len, manifest.max_prefill_len) == (512, 511)
    assert manifest.kv_cache == KVCacheSpec(3, 4, 16, "float32")


def test_the_manifest_says_what_the_model_is(engine_dir: Path) -> None:
    model = read(engine_dir).model
    assert (Path(model.id).name, model.revision) == (CHECKPOINT, None)
    assert Path(model.id).is_absolute()  # so that advice names this checkpoint from anywhere
    assert (model.family, model.vision_model, model.text_model) == (
        "llava",
        "clip_vision_model",
        "llama",
    )
    assert (model.hidden_size, model.vocab_size, model.image_token_id) == (64, 480, 470)
    assert model.max_position_embeddings == 512


def test_other_options_are_recorded_as_well(tied: tuple[Path, ExportSummary, Steps]) -> None:
    manifest = read(tied[0])
    assert (manifest.dtype, manifest.baseline, manifest.verified) == ("fp16", False, False)
    assert (manifest.selector.keep, manifest.selector.num_kept) == (0.25, 12)
    assert manifest.selector.positions == "original"
    assert (manifest.max_seq_len, manifest.max_prefill_len) == (128, 127)
    assert manifest.kv_cache == KVCacheSpec(3, 2, 16, "float16")
    assert (manifest.model.vision_model, manifest.model.text_model) == (
        "siglip_vision_model",
        "qwen2",
    )


def test_versions_are_those_that_wrote_and_those_that_can_run(engine_dir: Path) -> None:
    manifest = read(engine_dir)
    assert manifest.requires == {"onnxruntime": OrtDialect.min_onnxruntime}
    assert manifest.tools.keys() >= {"divprune-edge", "torch", "transformers", "onnxruntime"}
    for package, version in manifest.tools.items():
        assert version == importlib.metadata.version(package)


@pytest.mark.parametrize("which", ["engine_dir", "tied"])
def test_graphs_are_described_as_they_are(request: pytest.FixtureRequest, which: str) -> None:
    value = request.getfixturevalue(which)
    directory = value if isinstance(value, Path) else value[0]
    manifest = read(directory)
    for_cuda = {"vision_features", "vision_similarities", "vision_rows", "llm_decode"}
    further = for_cuda if manifest.runs_on_cuda else set()
    assert manifest.graphs.keys() == {"vision", "selection", "llm"} | further
    assert manifest.runs_on_cuda == (which == "tied")
    types = {"float32": "tensor(float)", "float16": "tensor(float16)"}
    types |= {"int64": "tensor(int64)", "int32": "tensor(int32)"}
    for graph in manifest.graphs.values():
        session = onnxruntime.InferenceSession(
            directory / graph.path, providers=["CPUExecutionProvider"]
        )
        for specs, nodes in (
            (graph.inputs, session.get_inputs()),
            (graph.outputs, session.get_outputs()),
        ):
            assert [(spec.name, types[spec.dtype], list(spec.shape)) for spec in specs] == [
                (node.name, node.type, node.shape) for node in nodes
            ]


# The summary and the way there


def test_the_summary_is_that_of_the_manifest(tied: tuple[Path, ExportSummary, Steps]) -> None:
    output, summary, _ = tied
    assert summary.directory == output
    assert summary.manifest == read(output)
    written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert summary.bytes_on_disk == written - (output / MANIFEST_NAME).stat().st_size
    assert summary.verify_errors is None
    assert summary.seconds > 0


def test_the_prompts_length_is_that_of_the_runtime(
    tied: tuple[Path, ExportSummary, Steps],
) -> None:
    pipeline = Pipeline.from_dir(tied[0])
    assert tied[1].prompt_text_tokens == pipeline.count_text_tokens("Describe the image.")
    picture = Image.new("RGB", (50, 40), (200, 30, 40))
    result = pipeline.generate(picture, "Describe the image.", max_new_tokens=2).result
    assert result.prompt_tokens == tied[1].prompt_text_tokens + 12
    with pytest.raises(OptionError, match="without the baseline"):
        pipeline.generate(picture, "Describe the image.", keep=1.0)


def test_every_step_with_a_total_reaches_it(tied: tuple[Path, ExportSummary, Steps]) -> None:
    steps = tied[2].done
    assert any("vision" in description for description, *_ in steps)
    assert any("LLM" in description for description, *_ in steps)
    for description, total, done in steps:
        assert total in (None, done), description


# The self-check


def test_a_wrong_graph_never_becomes_an_engine_directory(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter that forgets the epsilon of the norms, which only a check can tell."""
    right = OrtDialect.rms_norm

    def wrong(
        self: OrtDialect, op: GraphWriter, x: ir.Value, scale: ir.Value, epsilon: float
    ) -> ir.Value:
        return right(self, op, x, scale, 0.1)

    monkeypatch.setattr(OrtDialect, "rms_norm", wrong)
    options = options_for(checkpoint(CHECKPOINT), tmp_path / "engine", dtype="fp32")
    with pytest.raises(NumericalError, match="decoder block 0 of llm differs from transformers"):
        export_model(options)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_no_graph_uses_is_refused_by_name(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that leaves out what it does not know: here, the norms of the heads."""
    block = "divprune.export.decoder.block.BlockWriter._head_norm"
    monkeypatch.setattr(block, lambda self, x, name, num_heads: x)
    options = options_for(checkpoint("siglip-qwen3-v5"), tmp_path / "engine", verify=False)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.self_attn\.k_norm\.weight"):
        export_model(options)
    assert list(tmp_path.iterdir()) == []


# Disks that are full and processes that are ended


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of a few bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if os.getuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("mounting a small tmpfs needs root")
        return disk

    yield mount
    subprocess.run(["umount", str(disk)], check=False, capture_output=True)


def size_until(engine_dir: Path, *parts: str) -> int:
    """Bytes on disk of the files of these names, in whole pages of a tmpfs."""
    sizes = [
        path.stat().st_size
        for path in engine_dir.rglob("*")
        if path.is_file() and any(part in str(path.relative_to(engine_dir)) for part in parts)
    ]
    return sum(-(-size // 4096) * 4096 for size in sizes)


HOST_FILES = ("json", "jinja")


@pytest.mark.parametrize(
    "written",
    [
        (),
        (*HOST_FILES, "vision"),
        (*HOST_FILES, "vision", "llm"),
        (*HOST_FILES, "vision", "llm", "embed"),
    ],
    ids=["host-files", "llm-graph", "embeddings", "check"],
)
def test_a_disk_that_fills_up_is_told_and_nothing_is_left(
    checkpoint: Callable[[str], Path],
    engine_dir: Path,
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    written: tuple[str, ...],
) -> None:
    """Somebody else fills the disk after the free space was looked at."""
    source = checkpoint(CHECKPOINT)
    disk = small_disk(size_until(engine_dir, *written) + 3 * 4096)
    monkeypatch.setattr(module, "check_free_space", lambda *_: None)
    capfd.readouterr()
    assert main(options_on_command_line(source, disk / "new" / "engine")) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: the export does not fit on the disk")
    assert "No space left on device" in err
    assert "nothing was left behind" in err
    assert list(disk.iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    checkpoint: Callable[[str], Path], small_disk: Callable[[int], Path]
) -> None:
    source = checkpoint(CHECKPOINT)
    disk = small_disk(32 << 20)
    with pytest.raises(EngineDirectoryError, match=r"too full(.|\n)*MiB(.|\n)*--output"):
        export_model(options_for(source, disk / "engine"))
    assert list(disk.iterdir()) == []


@pytest.fixture
def limited_file_size() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_on_file_sizes_is_told_and_nothing_is_left(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    limited_file_size: Callable[[int], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, output = checkpoint(CHECKPOINT), tmp_path / "out" / "engine"
    capfd.readouterr()
    limited_file_size(200_000)
    assert main(options_on_command_line(source, output)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "error: the export does not fit on the disk" in err
    assert "File too large" in err
    assert "and files of that size" in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def waiting_export() -> Iterator[Callable[[Path, Path], subprocess.Popen[str]]]:
    """Starts an export in another process and waits until everything but its end is done."""
    running: list[subprocess.Popen[str]] = []

    def start(checkpoint: Path, output: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                WAITING_EXPORT,
                *options_on_command_line(checkpoint, output),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "checking\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_nothing_is_left_of_an_export_that_was_terminated(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    waiting_export: Callable[[Path, Path], subprocess.Popen[str]],
) -> None:
    source = checkpoint(CHECKPOINT)
    process = waiting_export(source, tmp_path / "out" / "engine")
    (partial,) = (tmp_path / "out").iterdir()
    assert (partial / "llm" / "model.onnx").exists()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_of_a_killed_export_is_no_engine_directory_and_goes_with_the_next(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    waiting_export: Callable[[Path, Path], subprocess.Popen[str]],
) -> None:
    output = tmp_path / "engine"
    process = waiting_export(checkpoint(CHECKPOINT), output)
    process.kill()
    process.wait(20)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".engine.partial-")
    for directory in (output, left):
        with pytest.raises(EngineDirectoryError):
            EngineDirectory.open(directory)
    with pytest.raises(OptionError, match="not a preset"):  # far enough to clean up
        export_model(ExportOptions(model="no/such/model", keep=0.1, output=output))
    assert list(tmp_path.iterdir()) == []
