"""An engine directory is opened only if all of it is what was exported."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import (
    SCHEMA_VERSION,
    FileRecord,
    GraphSpec,
    KVCacheSpec,
    Manifest,
    ModelInfo,
    SelectorInfo,
    TensorSpec,
)
from divprune.runtime.directory.manifest_json import checksum
from divprune.runtime.errors import EngineDirectoryError, OptionError
from tests.runtime.example_manifest import EXAMPLE_TOWER

CONTENT = {
    "vision/model.onnx": b"vision",
    "llm/model.onnx": b"llm",
    "llm/model.onnx.data": bytes(range(256)) * 8192,
    "tokenizer.json": b"{}",
    "empty.bin": b"",
}
HOUR_AGO = 1_700_000_000_000_000_000


def make_manifest(files: dict[str, FileRecord]) -> Manifest:
    tensors = (TensorSpec("x", "float32", (1,)),)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelInfo(
            "some/model",
            "abc123",
            "llava",
            "clip",
            "llama",
            64,
            100,
            99,
            None,
            1,
            128,
            4,
            96,
            EXAMPLE_TOWER,
            {},
        ),
        selector=SelectorInfo(
            "divprune", 1, 0.1, 16, 2, "contiguous", True, False, False, parameters={}
        ),
        target="onnxruntime",
        dialect="ort",
        dtype="fp32",
        quant=None,
        vision_quant=None,
        prefill_quant=None,
        graphs={"llm": GraphSpec("llm/model.onnx", 24, tensors, tensors)},
        dims={},
        kv_cache=KVCacheSpec(2, 2, 8, "float32"),
        max_prefill_len=127,
        max_seq_len=128,
        max_weight_mib=None,
        baseline=False,
        verified=True,
        requires={},
        tools={},
        files=files,
    )


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    root = tmp_path / "engine dir"
    for name, content in CONTENT.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(HOUR_AGO, HOUR_AGO))
    files = {n: FileRecord(hashlib.sha256(c).hexdigest(), len(c)) for n, c in CONTENT.items()}
    (root / "manifest.json").write_text(make_manifest(files).to_json())
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIVPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def edit_manifest(root: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads((root / "manifest.json").read_text())
    edit(content)
    (root / "manifest.json").write_text(json.dumps({**content, "checksum": checksum(content)}))


def refusal(root: Path, verify: str = "cached") -> str:
    """The message, which always says what, expected, found and what to do."""
    with pytest.raises(EngineDirectoryError) as caught:
        EngineDirectory.open(root, verify=verify)
    message = str(caught.value)
    for label in ("expected:", "found:", "fix:"):
        assert label in message
    return message


def change_unseen(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_intact_directory_opens_and_gives_absolute_paths(
    engine: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(engine.parent)
    directory = EngineDirectory.open(Path(engine.name))
    assert directory.path == engine
    assert directory.manifest.model.id == "some/model"
    assert directory.file("llm/model.onnx.data") == engine / "llm/model.onnx.data"


def test_directory_is_found_through_a_link(engine: Path, tmp_path: Path):
    (tmp_path / "current").symlink_to(engine)
    assert EngineDirectory.open(tmp_path / "current").path == engine


def test_files_of_a_build_beside_the_export_are_no_obstacle(engine: Path):
    (engine / "engines").mkdir()
    (engine / "engines" / "llm.engine").write_bytes(b"built here")
    directory = EngineDirectory.open(engine)
    with pytest.raises(EngineDirectoryError, match=r"no file engines/llm\.engine"):
        directory.file("engines/llm.engine")


def test_missing_directory_is_refused(tmp_path: Path):
    message = refusal(tmp_path / "nowhere")
    assert f"no engine directory {tmp_path / 'nowhere'}" in message
    assert "divprune-export" in message


def test_file_in_place_of_the_directory_is_refused(engine: Path):
    assert "is not a directory" in refusal(engine / "tokenizer.json")
    assert "no engine directory" in refusal(engine / "tokenizer.json" / "deeper")


def test_loop_of_links_is_refused(tmp_path: Path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refusal(tmp_path / "loop")


def test_directory_without_manifest_is_refused(engine: Path):
    (engine / "manifest.json").unlink()
    assert "manifest.json is missing" in refusal(engine)


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1,', b"\xff\xfe", b"[]"])
def test_manifest_that_is_no_json_object_is_refused(engine: Path, content: bytes):
    (engine / "manifest.json").write_bytes(content)
    message = refusal(engine)
    assert str(engine / "manifest.json") in message
    assert f"--output '{engine}' --force" in message


def test_wrong_field_is_named_with_the_directory_and_the_command(engine: Path):
    edit_manifest(engine, lambda m: m["selector"].update(num_kept=17))
    message = refusal(engine)
    assert message.startswith(f"{engine}/manifest.json: selector.num_kept")
    assert f"--output '{engine}' --force" in message


def test_newer_schema_is_refused_with_the_upgrade_command(engine: Path):
    edit_manifest(engine, lambda m: m.update(schema_version=SCHEMA_VERSION + 1, more={}))
    message = refusal(engine)
    assert "newer" in message
    assert "install the divprune-edge that wrote it" in message


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_missing_file_is_refused_with_the_command_that_writes_it(engine: Path, name: str):
    (engine / name).unlink()
    message = refusal(engine)
    assert f"{engine / name} is missing" in message
    assert "divprune-export --model some/model --revision abc123" in message
    assert f"--output '{engine}' --no-baseline --force" in message


def test_the_command_that_mends_it_repeats_the_seed_of_a_random_selection(engine: Path):
    edit_manifest(engine, lambda m: m["selector"].update(name="random", parameters={"seed": 7}))
    (engine / "tokenizer.json").unlink()
    assert "--selector random --seed 7 --keep" in refusal(engine)


def test_shorter_file_is_refused_by_its_size(engine: Path):
    os.truncate(engine / "llm/model.onnx.data", 100)
    message = refusal(engine)
    assert "2097152 bytes" in message
    assert "100 bytes" in message


@pytest.mark.parametrize("position", [0, 1_234_567, 256 * 8192 - 1])
def test_changed_byte_is_refused_by_its_hash(engine: Path, position: int):
    EngineDirectory.open(engine)
    path = engine / "llm/model.onnx.data"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert f"{path} is not the file that was exported" in refusal(engine)


def test_changed_byte_with_the_old_time_is_found_by_full_verification_only(engine: Path):
    EngineDirectory.open(engine)
    change_unseen(engine / "llm/model.onnx")
    assert EngineDirectory.open(engine).path == engine
    assert "SHA-256" in refusal(engine, verify="full")


def test_what_full_verification_found_is_remembered(engine: Path):
    EngineDirectory.open(engine)
    change_unseen(engine / "llm/model.onnx")
    refusal(engine, verify="full")
    assert "SHA-256" in refusal(engine)


def test_copy_of_the_directory_is_hashed_on_its_own(engine: Path, tmp_path: Path):
    EngineDirectory.open(engine)
    copy = tmp_path / "copy"
    shutil.copytree(engine, copy)  # keeps modification times
    change_unseen(copy / "llm/model.onnx")
    assert "SHA-256" in refusal(copy)


def test_damaged_cache_does_not_keep_a_directory_from_opening(engine: Path, cache: Path):
    EngineDirectory.open(engine)
    (cache / "file-hashes.json").write_bytes(b"\x00damaged")
    assert EngineDirectory.open(engine).path == engine
    (engine / "llm/model.onnx").write_bytes(b"LLM")
    refusal(engine)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "llm/../../secret"])
def test_path_of_the_manifest_that_leaves_the_directory_is_refused(engine: Path, path: str):
    secret = b"secret"
    (engine.parent / "secret").write_bytes(secret)
    record = {"sha256": hashlib.sha256(secret).hexdigest(), "size": len(secret)}
    edit_manifest(engine, lambda m: m["files"].update({path: record}))
    assert "a relative path below the engine directory" in refusal(engine)


def test_link_to_a_file_outside_is_refused_even_with_the_right_bytes(engine: Path, tmp_path: Path):
    path = engine / "tokenizer.json"
    path.rename(tmp_path / "tokenizer.json")
    path.symlink_to(tmp_path / "tokenizer.json")
    message = refusal(engine)
    assert "leads out of the engine directory" in message
    assert "cp -rL" in message


def test_folder_that_is_a_link_to_outside_is_refused(engine: Path, tmp_path: Path):
    (engine / "llm").rename(tmp_path / "llm")
    (engine / "llm").symlink_to(tmp_path / "llm")
    assert "leads out of the engine directory" in refusal(engine)


def test_sibling_whose_name_begins_alike_counts_as_outside(engine: Path):
    sibling = engine.with_name(engine.name + "2")
    sibling.mkdir()
    (engine / "tokenizer.json").rename(sibling / "tokenizer.json")
    (engine / "tokenizer.json").symlink_to(sibling / "tokenizer.json")
    assert "leads out of the engine directory" in refusal(engine)


def test_manifest_that_is_a_link_to_outside_is_refused(engine: Path, tmp_path: Path):
    (engine / "manifest.json").rename(tmp_path / "manifest.json")
    (engine / "manifest.json").symlink_to(tmp_path / "manifest.json")
    assert "leads out of the engine directory" in refusal(engine)


def test_link_within_the_directory_is_accepted(engine: Path):
    (engine / "tokenizer.json").rename(engine / "real.json")
    (engine / "tokenizer.json").symlink_to("real.json")
    assert EngineDirectory.open(engine).file("tokenizer.json").read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_regular_file_is_refused_without_reading_it(engine: Path, name: str, kind: str):
    (engine / name).unlink()
    (engine / name).mkdir() if kind == "directory" else os.mkfifo(engine / name)
    assert "is not a file" in refusal(engine)


def test_what_an_interrupted_export_left_is_refused_even_if_complete(engine: Path):
    left = engine.rename(engine.with_name(".engine dir.partial-0123abcd"))
    assert "interrupted export" in refusal(left)


def test_unknown_verification_is_refused(engine: Path):
    with pytest.raises(OptionError, match="cached or full"):
        EngineDirectory.open(engine, verify="fast")


def test_opened_directory_cannot_be_changed(engine: Path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineDirectory.open(engine).path = Path("/")


# --- nothing is read that nobody checked, and a mismatch is not remembered


@pytest.mark.parametrize(
    "name", ["llm/model.onnx.data", "vision/extra.bin", "llm/.hidden", "vision/model.onnx_data"]
)
def test_a_file_beside_the_graphs_that_is_not_listed_is_refused(engine: Path, name: str):
    (engine / name).parent.mkdir(exist_ok=True)
    (engine / name).write_bytes(b"weights of somebody else")
    edit_manifest(engine, lambda content: content["files"].pop(name, None))
    if (engine / name).parent.name in {
        Path(graph["path"]).parent.name
        for graph in json.loads((engine / "manifest.json").read_text())["graphs"].values()
    }:
        assert "nobody has checked it" in refusal(engine)


@pytest.mark.parametrize("first", ["cached", "full"])
def test_a_file_that_is_put_back_with_its_time_is_accepted(engine: Path, first: str):
    files = json.loads((engine / "manifest.json").read_text())["files"]
    name = next(name for name, record in files.items() if record["size"])
    file, past = engine / name, 1_577_836_800_000_000_000
    good = file.read_bytes()
    os.utime(file, ns=(past, past))
    EngineDirectory.open(engine)
    file.write_bytes(bytes(byte ^ 1 for byte in good))
    os.utime(file, ns=(past, past))
    if first == "full":
        refusal(engine, "full")
    file.write_bytes(good)
    os.utime(file, ns=(past, past))
    EngineDirectory.open(engine)


def test_a_changed_manifest_is_refused(engine: Path):
    file = engine / "manifest.json"
    content = json.loads(file.read_text())
    for changed in (
        {**content, "max_seq_len": content["max_seq_len"] - 1},
        {**content, "verified": not content["verified"]},
        {**content, "requires": {"onnxruntime": "0.1"}},
        {**content, "checksum": "0" * 64},
        {**content, "checksum": None},
        {key: value for key, value in content.items() if key != "checksum"},
    ):
        file.write_text(json.dumps(changed))
        assert "checksum is not that of the fields" in refusal(engine)
    file.write_text(json.dumps(content, indent=7))
    EngineDirectory.open(engine)


def test_a_directory_that_was_replaced_is_noticed(engine: Path):
    opened = EngineDirectory.open(engine)
    opened.require_unchanged()
    name = next(iter(opened.manifest.files))
    content = (engine / name).read_bytes()
    (engine / name).unlink()
    with pytest.raises(EngineDirectoryError, match="was replaced"):
        opened.require_unchanged()
    (engine / name).write_bytes(content)
    with pytest.raises(EngineDirectoryError, match="was replaced"):
        opened.require_unchanged()


def test_a_manifest_of_100_gigabytes_is_not_read(engine: Path):
    with (engine / "manifest.json").open("ab") as file:
        file.truncate(100 * 10**9)
    assert "too large" in refusal(engine)


def test_a_directory_whose_name_is_not_utf8_is_to_be_renamed(engine_dir: Path, tmp_path: Path):
    odd = tmp_path / os.fsdecode(b"e\xff")
    shutil.copytree(engine_dir, odd)
    with pytest.raises(OptionError, match=r"(?s)not text in UTF-8.*rename it"):
        EngineDirectory.open(odd)
    EngineDirectory.open(odd.rename(tmp_path / "e"))
