"""Advice about an engine directory: it is done, and ``divprune-run`` asked again."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest_json import checksum
from divprune.runtime.inputs.tokenization import TextTokenizer
from tests.advice.covered import DIRECTORIES
from tests.advice.tools import assert_gave, attempt, follow, refused
from tests.runtime.engine_copies import copy_engine

Damage = Callable[[Path, Path], object]
"""Makes a damaged copy (the second path) of an export (the first)."""


def files(**contents: bytes) -> Damage:
    """Replace files, in the manifest too: an export that wrote others. ``__`` is a dot."""
    named = {name.replace("__", "."): content for name, content in contents.items()}
    return lambda engine, copy: copy_engine(engine, copy, files=named)


def changed(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change a file, but not the manifest: a copy that went wrong."""

    def damage(engine: Path, copy: Path) -> None:
        shutil.copytree(engine, copy)
        (copy / name).write_bytes(change((copy / name).read_bytes()))

    return damage


def edited(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change a file and its record in the manifest."""
    return lambda engine, copy: copy_engine(
        engine, copy, files={name: change((engine / name).read_bytes())}
    )


def manifest(**changes: object) -> Damage:
    return lambda engine, copy: copy_engine(engine, copy, **changes)


def in_manifest(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change what the manifest says, with a checksum that fits."""

    def damage(engine: Path, copy: Path) -> None:
        shutil.copytree(engine, copy)
        content = json.loads((copy / "manifest.json").read_text())
        change(content)
        (copy / "manifest.json").write_text(json.dumps({**content, "checksum": checksum(content)}))

    return damage


def other_input(content: dict[str, Any]) -> None:
    content["graphs"]["vision"]["inputs"][0]["name"] = "pixels"


def wrong_type(content: dict[str, Any]) -> None:
    content["graphs"]["vision"]["inputs"][0]["dtype"] = 7


def narrow_table(content: bytes) -> bytes:
    return save({"embed_tokens": np.zeros((480, 32), np.float32)})


def without_placeholder(content: bytes) -> bytes:
    """Write a tokenizer that takes the placeholder for letters."""
    tokenizer = json.loads(content)
    tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if each["id"] != 470]
    return json.dumps(tokenizer).encode()


CASES: dict[str, Damage] = {
    # What an export, or a copy of it, written again mends.
    "a file of another size": changed("llm/model.onnx.data", lambda data: data + b"."),
    "a file of other bytes": changed("tokenizer.json", lambda data: data[:-1] + b" "),
    "a manifest cut off": changed("manifest.json", lambda data: data[:-50]),
    "a manifest in another encoding": changed("manifest.json", lambda data: b"\xff" + data),
    "a manifest with a wrong type": in_manifest(wrong_type),
    "a manifest with a wrong value": in_manifest(
        lambda content: content["selector"].update(keep=7)
    ),
    "a manifest without a graph": in_manifest(lambda content: content["graphs"].pop("llm")),
    "a manifest of other graphs": in_manifest(other_input),
    "facts of another family": manifest(model__facts={}),
    "a processor without a name": files(preprocessor_config__json=b"{}"),
    "a table that is none": files(embed_tokens__safetensors=b"none"),
    "a table of another model": edited("embed_tokens.safetensors", narrow_table),
    "generation config cut off": files(generation_config__json=b"["),
    "generation config without an end": files(generation_config__json=b"{}"),
    "generation config with a word": files(
        generation_config__json=b'{"eos_token_id": 2, "repetition_penalty": "high"}'
    ),
    "generation config that bars all": files(
        generation_config__json=json.dumps(
            {"eos_token_id": 2, "suppress_tokens": list(range(480))}
        ).encode()
    ),
    "a template that is none": files(chat_template__jinja=b"{% if %}"),
    "a template that fails": files(chat_template__jinja=b"{{ 1 / 0 }}"),
    "a template in another encoding": files(chat_template__jinja=b"\xff\xfe"),
    "a template without pictures": files(chat_template__jinja=b"USER: {{ messages | length }}"),
    "a tokenizer that is none": files(tokenizer__json=b"{}"),
    "a tokenizer config cut off": files(tokenizer_config__json=b"["),
    "a tokenizer of letters": edited("tokenizer.json", without_placeholder),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The words of ``divprune-run`` but for the directory."""
    picture = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(picture)
    return f"divprune-run {{}} {picture} -q --threads 1 --max-new-tokens 1 --prompt What?"


@pytest.mark.parametrize("name", CASES)
def test_the_directory_written_again_runs(engine_dir, run, tmp_path, name):
    copy = tmp_path / "engine"
    words = shlex.split(run.format(copy))
    CASES[name](engine_dir, copy)
    refusal = attempt(words)
    assert_gave(refusal, DIRECTORIES[name])
    shutil.rmtree(copy)
    shutil.copytree(engine_dir, copy)
    mended = attempt(words)
    assert mended.code == 0, (refusal.message, mended.message)


def test_the_advised_export_writes_what_is_missing(engine_dir, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forget = in_manifest(lambda content: content["files"].pop("chat_template.jinja"))
    forget(engine_dir, tmp_path / "engine")
    words = shlex.split(run.format(tmp_path / "engine"))
    refusal = attempt(words)
    assert_gave(refusal, DIRECTORIES["a file that was not exported"])
    assert attempt(follow(words, refusal)).code == 0


def test_a_file_that_nobody_listed_is_removed(engine_dir, run, tmp_path):
    copy = Path(shutil.copytree(engine_dir, tmp_path / "engine"))
    (copy / "vision" / "model.onnx.extra").write_bytes(b"?")
    refusal = attempt(shlex.split(run.format(copy)))
    assert_gave(refusal, DIRECTORIES["a file that nobody listed"])
    assert refusal.fix.startswith("remove it")
    (copy / "vision" / "model.onnx.extra").unlink()
    assert attempt(shlex.split(run.format(copy))).code == 0


def test_the_copy_without_links_runs(engine_dir, run, tmp_path):
    copy = Path(shutil.copytree(engine_dir, tmp_path / "an engine"))
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").symlink_to(engine_dir / "tokenizer.json")
    refusal = attempt(shlex.split(run.format(shlex.quote(str(copy)))))
    assert_gave(refusal, DIRECTORIES["a link out of the directory"])
    _, _, command = refusal.fix.partition(": ")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert attempt(shlex.split(run.format(tmp_path / "COPY"))).code == 0


@pytest.mark.parametrize("name", ["none", "a file"])
def test_the_directory_that_an_export_wrote_is_named(engine_dir, run, tmp_path, name):
    (tmp_path / "a file").touch()
    refusal = attempt(shlex.split(run.format(shlex.quote(str(tmp_path / name)))))
    assert_gave(refusal, DIRECTORIES[f"no directory: {name}"])
    assert refusal.fix.startswith("name the directory that divprune-export wrote")
    assert attempt(shlex.split(run.format(engine_dir))).code == 0


def test_exporting_again_removes_what_an_interrupted_export_left(
    engine_dir, checkpoint, run, tmp_path
):
    left = tmp_path / ".engine.partial-0123abcd"
    shutil.copytree(engine_dir, left)
    refusal = attempt(shlex.split(run.format(left)))
    assert_gave(refusal, DIRECTORIES["an interrupted export"])
    source = checkpoint("clip-llama-hub")
    export = f"divprune-export --model {source} --keep 0.1 --output {tmp_path / 'engine'}"
    assert attempt(shlex.split(export), whole=False).code == 0
    assert not left.exists()


def test_a_directory_that_was_replaced_is_opened_again(engine_dir, tmp_path):
    copy = Path(shutil.copytree(engine_dir, tmp_path / "engine"))
    opened = EngineDirectory.open(copy)
    shutil.copy(copy / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer.json").replace(copy / "tokenizer.json")
    refusal = refused(opened.require_unchanged)
    assert_gave(refusal, DIRECTORIES["a file that was replaced"])
    EngineDirectory.open(copy).require_unchanged()


def test_a_tokenizer_that_is_missing_is_there_after_an_export(engine_dir, tmp_path):
    refusal = refused(lambda: TextTokenizer.from_dir(tmp_path))
    assert_gave(refusal, DIRECTORIES["a tokenizer that is missing"])
    TextTokenizer.from_dir(engine_dir)


@pytest.fixture(scope="module")
def with_more_tokens(engine_dir, tmp_path_factory) -> Path:
    """An engine whose tokenizer has three tokens behind the last row of the table, <480> first."""

    def add(content: bytes) -> bytes:
        tokenizer = json.loads(content)
        like = tokenizer["added_tokens"][-1]
        more = [{**like, "id": number, "content": f"<{number}>"} for number in range(480, 483)]
        tokenizer["added_tokens"] += more
        return json.dumps(tokenizer).encode()

    copy = tmp_path_factory.mktemp("more") / "engine"
    edited("tokenizer.json", add)(engine_dir, copy)
    return copy


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("<480> What?", "<480>"),
        ("What is at <482>?", "<482>"),
        ("red<481>blue", "<481>"),
        ("<482><480>", "<482>"),
        ("What? <481>", "<481>"),
        ("One\n<480>\ntwo <480>", "<480>"),
    ],
)
def test_a_token_without_a_row_is_named_and_left_out(with_more_tokens, run, prompt, named):
    words = shlex.split(run.format(with_more_tokens))
    refusal = attempt([*words[:-1], prompt])
    assert_gave(refusal, DIRECTORIES["a token without a row"])
    assert f"the token {named} has no row" in refusal.message
    left = re.sub(r"<\d+>", "", prompt)
    assert attempt([*words[:-1], left or "What?"]).code == 0


def test_a_token_without_a_row_in_the_system_prompt_is_named(with_more_tokens, run):
    words = shlex.split(run.format(with_more_tokens))
    refusal = attempt([*words, "--system", "See <481>."])
    assert_gave(refusal, DIRECTORIES["a token without a row"])
    assert attempt(words).code == 0


def without_bytes(content: bytes) -> bytes:
    """Write a tokenizer that spells a line feed alone in bytes, and lacks its unknown token."""
    tokenizer = json.loads(content)
    vocab = {
        token: number
        for token, number in tokenizer["model"]["vocab"].items()
        if not token.startswith("<0x") or token == "<0x0A>"
    }
    tokenizer["model"] |= {"unk_token": "<nowhere>", "vocab": vocab}
    return json.dumps(tokenizer).encode()


@pytest.mark.parametrize("prompt", ["Un café?", "日本", "Ω", "a\tb", "🙂 What?"])
def test_another_prompt_or_a_repaired_tokenizer_is_taken(engine_dir, run, tmp_path, prompt):
    edited("tokenizer.json", without_bytes)(engine_dir, tmp_path / "engine")
    words = shlex.split(run.format(tmp_path / "engine"))
    refusal = attempt([*words[:-1], prompt])
    assert_gave(refusal, DIRECTORIES["a tokenizer that fails"])
    assert refusal.fix.startswith("another prompt; if it is every one, repair tokenizer.json")
    assert attempt([*words[:-1], "What is it?"]).code == 0
    assert attempt([*shlex.split(run.format(engine_dir))[:-1], prompt]).code == 0


def test_every_case_has_the_advice_that_it_follows():
    alone = {
        "a file that nobody listed",
        "a file that was not exported",
        "a file that was replaced",
        "a link out of the directory",
        "a token without a row",
        "a tokenizer that fails",
        "a tokenizer that is missing",
        "an interrupted export",
        "no directory: none",
        "no directory: a file",
    }
    assert CASES.keys() | alone == DIRECTORIES.keys()
