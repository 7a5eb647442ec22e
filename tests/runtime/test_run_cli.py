from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from PIL import Image

from divprune.runtime import Pipeline
from divprune.runtime.cli.run import main
from divprune.runtime.directory.keep import describe_keep
from tests.runtime.engine_copies import copy_engine, read_manifest

pytest.importorskip("onnxruntime")

COMMAND = [sys.executable, "-m", "divprune.runtime.cli.run"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--threads", "1"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run with something that the user can mend; the message."""
    code = run(*arguments)
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


def test_the_text_goes_to_stdout_and_one_line_of_figures_to_stderr(engine_dir, picture, capsys):
    assert run(engine_dir, picture, "--max-new-tokens", 6) == 0
    out, err = capsys.readouterr()

    expected = Pipeline.from_dir(engine_dir, threads=1).generate(
        picture, "Describe the image.", max_new_tokens=6
    )
    assert out == expected.result.text + "\n"
    (line,) = err.splitlines()
    selector = read_manifest(engine_dir).selector
    ttft, rate, kept, memory = line.split(" | ")
    assert ttft.startswith("TTFT ")
    assert rate.endswith(" tokens/s")
    assert kept == describe_keep(selector.num_kept, selector.num_image_tokens)
    assert memory.startswith("peak memory ")


def test_one_token_has_no_rate_and_no_error(engine_dir, picture, capsys):
    assert run(engine_dir, picture, "--max-new-tokens", 1) == 0
    assert " | one token | " in capsys.readouterr().err


def test_quiet_prints_the_text_only(engine_dir, picture, capsys):
    assert run(engine_dir, picture, "--max-new-tokens", 3, "-q") == 0
    out, err = capsys.readouterr()
    assert out
    assert err == ""


def test_verbose_says_what_was_loaded(engine_dir, picture, capsys):
    assert run(engine_dir, picture, "--max-new-tokens", 1, "-v") == 0
    assert f"(CPU) loaded {engine_dir} in " in capsys.readouterr().err


def test_json_is_one_object_and_nothing_else(engine_dir, picture, capsys):
    options = ("--prompt", "What is this?", "--max-new-tokens", 4, "--json")
    assert run(engine_dir, picture, picture, *options) == 0
    out, err = capsys.readouterr()

    assert err == ""
    assert out.count("\n") == 1
    fields = json.loads(out)
    assert fields.keys() >= {
        "text", "token_ids", "kept_indices", "num_image_tokens", "num_kept", "prompt_tokens",
        "finish_reason", "timings_ms", "memory_bytes", "backend", "images",
    }  # fmt: skip
    assert len(fields["token_ids"]) <= 4
    assert fields["kept_indices"] == sorted(fields["kept_indices"])
    assert fields["images"][0] == fields["images"][1]
    assert fields["finish_reason"] in ("stop", "length")
    assert fields["memory_bytes"]["peak_device"] is None


def test_options_reach_the_pipeline(engine_dir, picture, capsys):
    number = read_manifest(engine_dir).selector.num_image_tokens
    options = ("--keep", 2 / number, "--max-new-tokens", 12, "--json")
    drawn = ("--temperature", 3, "--top-p", 0.9, "--seed", 5)
    assert run(engine_dir, picture, *options, *drawn) == 0
    assert run(engine_dir, picture, *options, *drawn) == 0
    assert run(engine_dir, picture, *options) == 0
    first, second, greedy = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["num_kept"] == 2
    assert first["token_ids"] == second["token_ids"] != greedy["token_ids"]


def test_a_shorter_cache_takes_less_memory_and_answers_the_same(engine_dir, picture, capsys):
    options = ("--max-new-tokens", 4, "--json")
    assert run(engine_dir, picture, *options) == 0
    assert run(engine_dir, picture, *options, "--max-seq-len", 128) == 0
    whole, short = map(json.loads, capsys.readouterr().out.splitlines())
    assert short["token_ids"] == whole["token_ids"]
    assert short["memory_bytes"]["kv_cache"] * 4 == whole["memory_bytes"]["kv_cache"]


def test_a_prompt_that_a_shorter_cache_does_not_hold_names_the_flag(engine_dir, picture, capsys):
    err = refused(capsys, engine_dir, picture, "--max-seq-len", 12)
    assert "the prompt is too long" in err
    assert "at most 11 tokens" in err
    assert "a larger --max-seq-len" in err


def test_a_cache_longer_than_exported_is_refused(engine_dir, picture, capsys):
    err = refused(capsys, engine_dir, picture, "--max-seq-len", 513)
    assert "at most 512" in err
    assert "export again with --max-seq-len 513" in err


def test_graphs_for_tensorrt_have_a_cache_of_fixed_length(target_dir, picture, capsys):
    options = ("--backend", "onnxruntime", "--max-seq-len", 128)
    err = refused(capsys, target_dir("tensorrt"), picture, *options)
    assert "dialect 'onnx' have a KV cache of fixed length" in err


def test_an_overlay_is_written_for_each_picture(engine_dir, picture, tmp_path, capsys):
    output = tmp_path / "out.png"
    output.write_bytes(b"an older file")
    options = ("--max-new-tokens", 1, "--json", "--overlay", output, "--overlay-numbers")
    assert run(engine_dir, picture, picture, *options) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["num_kept"]

    assert {path.name for path in tmp_path.iterdir()} == {"out.png", "out-2.png"}
    (pruning, _) = (
        Pipeline.from_dir(engine_dir, threads=1)
        .generate([picture, picture], "Describe the image.", max_new_tokens=1)
        .result.images
    )
    expected = Pipeline.from_dir(engine_dir).draw_overlay(picture, pruning, numbers=True)
    for path in tmp_path.iterdir():
        with Image.open(path) as overlay:
            assert overlay.format == "PNG"
            assert overlay.tobytes() == expected.tobytes()


def test_numbers_where_nothing_is_selected_are_refused(engine_dir, picture, tmp_path, capsys):
    options = ("--keep", 1.0, "--overlay", tmp_path / "out.png", "--overlay-numbers")
    assert "has nothing to number" in refused(capsys, engine_dir, picture, *options)
    assert not list(tmp_path.iterdir())


def test_an_overlay_without_a_known_grid_is_refused(engine_dir, picture, tmp_path, capsys):
    manifest = read_manifest(engine_dir)
    facts = {**manifest.model.facts, "num_tokens": manifest.selector.num_image_tokens + 3}
    copy = copy_engine(engine_dir, tmp_path / "e", model__facts=facts)
    err = refused(capsys, copy, picture, "--overlay", tmp_path / "out.png")
    assert "disagree about the number of visual tokens" in err


def test_full_verification_finds_what_the_cache_would_too(engine_dir, picture, capsys):
    assert run(engine_dir, picture, "--max-new-tokens", 1, "--verify", "full", "-q") == 0


def test_standard_input_is_a_picture(engine_dir, picture):
    command = [*COMMAND, engine_dir, "-", "--max-new-tokens", "2", "--json"]
    done = subprocess.run(command, input=picture.read_bytes(), capture_output=True, check=True)
    assert len(json.loads(done.stdout)["token_ids"]) == 2


def test_a_reader_that_goes_away_ends_the_run_quietly(engine_dir, picture):
    command = [*COMMAND, engine_dir, picture, "--max-new-tokens", "400", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert err == b""


def test_text_that_the_terminal_cannot_show_does_not_end_the_run(engine_dir, picture):
    command = [*COMMAND, engine_dir, picture, "--max-new-tokens", "60", "--temperature", "9"]
    done = subprocess.run(
        [*command, "--seed", "0"],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_help_answers_at_once():
    seconds = []
    for _ in range(3):
        start = perf_counter()
        done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
        seconds.append(perf_counter() - start)
    assert "ENGINE_DIR" in done.stdout
    assert min(seconds) < 0.5


def test_help_imports_no_heavy_library():
    program = (
        "import sys\n"
        "from divprune.runtime.cli.run import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'PIL', 'tokenizers', 'jinja2', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "options, message",
    [
        (("--keep", "0"), "--keep must be above 0"),
        (("--keep", "-0.1"), "--keep must be above 0"),
        (("--keep", "1.5"), "--keep must not be above 1"),
        (("--keep", "10"), "--keep 0.1 if 10 % was meant"),
        (("--keep", "nan"), "--keep is not a number"),
        (("--max-new-tokens", "0"), "--max-new-tokens must be at least 1"),
        (("--temperature", "-1"), "temperature"),
        (("--temperature", "nan"), "temperature"),
        (("--top-p", "0"), "top-p"),
        (("--seed", "-1"), "seed"),
        (("--top-p", "0.9"), "no effect on a greedy answer"),
        (("--seed", "7"), "no effect on a greedy answer"),
        (("--backend", "torch"), "unknown backend 'torch'"),
        (("--overlay-numbers",), "--overlay-numbers needs --overlay"),
        (("--overlay", "out.pgn"), "--overlay names no picture format"),
        (("--overlay", "out"), "out (no ending)"),
        (("--overlay", ""), "--overlay names no picture format"),
        (("--overlay", "no/such/folder/out.png"), "No such file or directory"),
    ],
)
def test_a_bad_option_is_refused_before_any_file_is_opened(capsys, options, message):
    assert message in refused(capsys, "no/such/engine", "no/such/picture.png", *options)


@pytest.mark.parametrize("name", ["folder.png", "file/out.png"])
def test_an_overlay_that_cannot_be_written_is_refused_before_any_file_is_opened(
    name, tmp_path, capsys
):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    err = refused(capsys, "no/such/engine", "no.png", "--overlay", tmp_path / name)
    assert "cannot be written" in err or "is a directory" in err


def test_an_overlay_may_not_replace_a_picture(picture, tmp_path, capsys):
    second = tmp_path / "out-2.png"
    second.write_bytes(picture.read_bytes())
    for output in (second, tmp_path / "out.png"):
        err = refused(capsys, "no/such/engine", picture, second, "--overlay", output)
        assert f"would replace the picture {second}" in err
    assert list(tmp_path.iterdir()) == [second]


def test_threads_below_one_are_refused(capsys):
    assert main(["no/such/engine", "no.png", "--threads", "0"]) == 2
    assert "--threads is no number" in capsys.readouterr().err


def test_standard_input_twice_is_refused(capsys):
    assert "standard input" in refused(capsys, "no/such/engine", "-", "-")


@pytest.mark.parametrize(
    "arguments", [[], ["e", "a", "--device", "x"], ["e", "a", "--max-new-tokens", "ten"]]
)
def test_a_command_line_that_cannot_be_parsed_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "divprune-run --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["engine"], "neither a picture nor a question"),
        (["engine", "a.png", "--keep", "ten"], "a fraction kept such as 0.1, or auto:C"),
        (["engine", "a.png", "--keep", "auto:2"], "auto:C with 0 < C <= 1"),
        (["engine", "a.png", "--num-frames", "0"], "--num-frames"),
        (["engine", "a.png", "--messages", "m.json"], "--messages is a whole conversation"),
        (["engine", "a.png", "--fps", "2"], "--fps would have no effect without a video"),
        (["engine", "--prompt", "a", "--num-frames", "2", "--fps", "2"], "--num-frames and --fps"),
    ],
)
def test_options_that_say_nothing_sensible_are_refused(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_missing_engine_directory_is_refused(picture, tmp_path, capsys):
    assert "there is no engine directory" in refused(capsys, tmp_path / "none", picture)


def test_a_missing_picture_is_refused_before_the_engine_is_loaded(engine_dir, tmp_path, capsys):
    assert "none.png" in refused(capsys, engine_dir, tmp_path / "none.png")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n\0\0\0"])
def test_a_file_that_is_no_picture_is_refused(engine_dir, tmp_path, capsys, content):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    assert "picture.png" in refused(capsys, engine_dir, path)


def test_a_keep_above_the_exported_names_the_export_command(engine_dir, picture, capsys):
    err = refused(capsys, engine_dir, picture, "--keep", "0.5")
    assert "divprune-export --model" in err
    assert "--keep 0.5" in err


def test_keep_1_without_the_baseline_is_refused(engine_dir, picture, tmp_path, capsys):
    copy = copy_engine(engine_dir, tmp_path / "e", baseline=False)
    assert "without the baseline" in refused(capsys, copy, picture, "--keep", "1.0")


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(engine_dir, picture, capsys):
    manifest = read_manifest(engine_dir)
    prompt = "word " * manifest.max_prefill_len
    err = refused(capsys, engine_dir, picture, "--prompt", prompt)
    assert "the prompt is too long" in err
    assert f"at most {manifest.max_prefill_len} tokens" in err
    assert f"{manifest.selector.num_kept} of them image tokens" in err


def test_an_engine_for_a_newer_onnxruntime_is_refused(engine_dir, picture, tmp_path, capsys):
    copy = copy_engine(engine_dir, tmp_path / "e", requires={"onnxruntime": "99.0"})
    err = refused(capsys, copy, picture)
    assert "ONNX Runtime is too old" in err
    assert "onnxruntime>=99.0" in err


def test_a_changed_byte_in_the_engine_directory_is_refused(engine_dir, picture, tmp_path, capsys):
    copy = copy_engine(engine_dir, tmp_path / "e")
    table = bytearray((copy / "embed_tokens.safetensors").read_bytes())
    table[-1] ^= 1
    (copy / "embed_tokens.safetensors").write_bytes(table)
    assert "embed_tokens.safetensors" in refused(capsys, copy, picture)


# --- one answer for each picture, questions from a pipe, how tokens are chosen


def test_each_picture_has_a_line_of_json_or_what_is_wrong_with_it(engine_dir, picture, capsys):
    sources = [picture, "no/such.png", picture]
    assert run(engine_dir, *sources, "--jsonl", "--max-new-tokens", 3, "--keep", 0.05) == 2
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == list(map(str, sources))
    assert lines[0]["token_ids"] == lines[2]["token_ids"]
    assert "does not exist" in lines[1]["error"]
    assert err == "2 of 3 pictures answered, 1 failed\n"


def test_each_picture_is_answered_as_if_it_were_alone(engine_dir, picture, capsys):
    assert run(engine_dir, picture, "--max-new-tokens", 4) == 0
    alone = capsys.readouterr().out
    assert run(engine_dir, picture, picture, "--each", "--max-new-tokens", 4) == 0
    assert capsys.readouterr().out == 2 * f"{picture}: {alone}"


@pytest.mark.parametrize(
    "options", [("--each", "--json"), ("--each", "--overlay", "a.png"), ("--each", "--video", "a")]
)
def test_what_does_not_go_with_each_is_refused(capsys, options):
    assert "--each" in refused(capsys, "no/such/engine", "no.png", *options)
    assert "--each" in refused(capsys, "no/such/engine", "--jsonl")


@pytest.mark.parametrize("data", [b"What is it?", b"What is it?\n", b"\xef\xbb\xbfWhat is it?\r\n"])
def test_a_question_is_read_from_standard_input(engine_dir, picture, monkeypatch, capsys, data):
    assert run(engine_dir, picture, "--prompt", "What is it?", "--max-new-tokens", 3) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run(engine_dir, picture, "--prompt", "-", "--max-new-tokens", 3) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a" * (2 << 20), b"", None])
def test_a_question_that_is_none_is_refused(picture, monkeypatch, capsys, data):
    stdin = None if data is None else io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr("sys.stdin", stdin)
    err = refused(capsys, "no/such/engine", picture, "--prompt", "-")
    assert "question" in err


def test_standard_input_is_a_picture_or_a_question(capsys):
    err = refused(capsys, "no/such/engine", "-", "--prompt", "-")
    assert "- twice" in err


@pytest.mark.parametrize("option", [("--top-k", 5), ("--min-p", 0.1), ("--top-p", 0.5)])
def test_an_option_without_effect_is_refused_by_its_name(capsys, option):
    err = refused(capsys, "no/such/engine", "no.png", *option)
    assert f"{option[0]} would have no effect" in err


@pytest.mark.parametrize(
    "option",
    [
        ("--top-k", -1),
        ("--min-p", 2),
        ("--repetition-penalty", 0),
        ("--stop", ""),
        ("--threads", 9**9),
    ],
)
def test_a_value_out_of_range_is_refused_before_any_file_is_opened(capsys, option):
    refused(capsys, "no/such/engine", "no.png", "--temperature", 1, *option)


def test_sampling_options_reach_the_sampler(engine_dir, picture, capsys):
    greedy = ("--temperature", 1, "--top-k", 1, "--seed", 3, "--max-new-tokens", 5)
    assert run(engine_dir, picture, *greedy) == 0
    drawn = capsys.readouterr().out
    assert run(engine_dir, picture, "--max-new-tokens", 5) == 0
    assert capsys.readouterr().out == drawn
    stop = drawn[1:3]  # which the text may hold earlier, too
    assert run(engine_dir, picture, "--max-new-tokens", 5, "--stop", stop) == 0
    assert capsys.readouterr().out == drawn[: drawn.index(stop)] + "\n"
