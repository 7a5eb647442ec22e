"""manifest.json: what is written comes back, and nothing else is accepted."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divprune.runtime.directory.manifest import (
    SCHEMA_VERSION,
    DimRange,
    FileRecord,
    GraphSpec,
    KVCacheSpec,
    Manifest,
    ModelInfo,
    QuantInfo,
    SelectorInfo,
    TensorSpec,
    TowerInfo,
)
from divprune.runtime.directory.manifest_json import FieldError, checksum
from divprune.runtime.errors import EngineDirectoryError, printable
from tests.runtime.example_manifest import example_manifest, with_changes

RECORD = FileRecord(sha256="0123456789abcdef" * 4, size=3)


def make_manifest() -> Manifest:
    pixels = TensorSpec("pixel_values", "float32", (1, 3, 336, 336))
    features = TensorSpec("image_features", "float16", (576, "hidden"))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelInfo(
            id="llava-hf/llava-1.5-7b-hf",
            revision=None,
            family="llava",
            vision_model="clip_vision_model",
            text_model="llama",
            hidden_size=4096,
            vocab_size=32064,
            image_token_id=32000,
            video_token_id=None,
            position_axes=1,
            max_position_embeddings=4096,
            num_heads=32,
            intermediate_size=11008,
            tower=TowerInfo(1024, 4096, 23, 16, 577, 14, 3, 1024),
            facts={"image_token": "<image>"},
        ),
        selector=SelectorInfo(
            name="divprune",
            version=1,
            keep=0.1,
            num_image_tokens=576,
            num_kept=58,
            positions="contiguous",
            nested=True,
            merges=False,
            inside_llm=False,
            parameters={},
        ),
        target="onnxruntime",
        dialect="ort",
        dtype="fp16",
        quant=QuantInfo("int4-g32-sym", "rtn", 4, 32, symmetric=True),
        vision_quant=None,
        prefill_quant=None,
        graphs={"vision": GraphSpec("vision/model.onnx", 24, (pixels,), (features,))},
        dims={"hidden": DimRange(1, 2, 3)},
        kv_cache=KVCacheSpec(num_layers=32, num_kv_heads=32, head_dim=128, dtype="float16"),
        max_prefill_len=2047,
        max_seq_len=2048,
        max_weight_mib=256,
        baseline=True,
        verified=True,
        requires={"onnxruntime": "1.22"},
        tools={"torch": "2.13.0+cpu"},
        files={"vision/model.onnx": RECORD},
    )


def refusal_of(change: dict[str, object] | None = None, *, without: str = "") -> str:
    """The message for a valid manifest with dotted fields changed, or one taken away."""
    content = json.loads(make_manifest().to_json())
    for field, value in (change or {without: None}).items():
        *parents, name = field.split("/")
        place = content
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place[parent]
        if without:
            del place[name]
        elif isinstance(place, list):
            place[int(name)] = value
        else:
            place[name] = value
    with pytest.raises(EngineDirectoryError) as caught:
        Manifest.from_json(json.dumps(content))
    return str(caught.value)


text = st.text(string.ascii_letters + string.digits + "-_. äß語", min_size=1, max_size=12)
counts = st.integers(1, 1 << 40)
paths = st.lists(
    st.text(string.ascii_letters + "-_é ", min_size=1, max_size=8), min_size=1, max_size=3
).map("/".join)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), 1 << 63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
versions = st.lists(st.integers(0, 99), min_size=1, max_size=3).map(
    lambda parts: ".".join(map(str, parts))
)
tensors = st.builds(
    TensorSpec,
    name=text,
    dtype=st.sampled_from(["float32", "float16", "int64"]),
    shape=st.lists(st.integers(0, 1 << 20) | text, max_size=4).map(tuple),
)
ports = st.lists(tensors, min_size=1, max_size=3, unique_by=lambda t: t.name).map(tuple)
records = st.builds(
    FileRecord,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    size=st.integers(0, 1 << 40),
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    files = draw(st.dictionaries(paths, records, min_size=1, max_size=4))
    graph = st.builds(
        GraphSpec, st.sampled_from(sorted(files)), st.integers(1, 30), inputs=ports, outputs=ports
    )
    num_kept = draw(st.integers(1, 5000))
    max_prefill_len = draw(st.integers(1, 10_000))
    inside_llm = draw(st.booleans())
    parameters = st.dictionaries(st.text(max_size=5), plain, max_size=3)
    halves = ("llm_front", "llm_back") if inside_llm else ()
    return draw(
        st.builds(
            Manifest,
            schema_version=st.just(SCHEMA_VERSION),
            model=st.builds(
                ModelInfo,
                id=text,
                revision=st.none() | text,
                family=text,
                vision_model=text,
                text_model=text,
                hidden_size=counts,
                vocab_size=counts,
                image_token_id=st.integers(0, 1 << 20),
                video_token_id=st.none() | st.integers(0, 1 << 20),
                position_axes=st.sampled_from([1, 3]),
                max_position_embeddings=st.integers(20_000, 1 << 40),
                num_heads=counts,
                intermediate_size=counts,
                tower=st.builds(TowerInfo, *[counts] * 8),
                facts=parameters,
            ),
            selector=st.builds(
                SelectorInfo,
                name=st.from_regex(r"[a-z]\w*[\w.-]{0,8}", fullmatch=True),
                version=counts,
                keep=st.floats(0, 1, exclude_min=True),
                num_image_tokens=st.integers(num_kept, 10_000),
                num_kept=st.just(num_kept),
                positions=st.sampled_from(["contiguous", "original"]),
                inside_llm=st.just(inside_llm),
                parameters=parameters.map(lambda found: {**found, "layer": 1}),
            ),
            target=st.sampled_from(["onnxruntime", "tensorrt", "tensorrt-rtx", "jetpack6"]),
            dialect=st.sampled_from(["ort", "onnx", "delta"]),
            dtype=st.sampled_from(["fp16", "fp32"]),
            quant=st.none()
            | st.builds(
                QuantInfo,
                scheme=text,
                method=st.sampled_from(["rtn", "mse", "awq", "gptq"]),
                bits=st.sampled_from([4, 8]),
                block=st.none() | counts,
            ),
            vision_quant=st.sampled_from([None, "int8"]),
            prefill_quant=st.sampled_from([None, "int8"]),
            dims=st.dictionaries(text, st.builds(lambda n: DimRange(n, n + 1, n + 2), counts)),
            graphs=st.fixed_dictionaries(
                dict.fromkeys(halves, graph),
                optional=dict.fromkeys(("vision", "selection", "llm"), graph),
            ),
            kv_cache=st.builds(
                KVCacheSpec,
                st.integers(2, 1 << 40),
                counts,
                counts,
                st.sampled_from(["float16", "float32"]),
            ),
            max_prefill_len=st.just(max_prefill_len),
            max_seq_len=st.integers(max_prefill_len, 20_000),
            max_weight_mib=st.none() | st.integers(1, 4096),
            requires=st.dictionaries(
                st.sampled_from(["onnxruntime", "tensorrt", "tensorrt-rtx"]), versions
            ),
            tools=st.dictionaries(text, text, max_size=2),
            files=st.just(files),
        )
    )


@settings(max_examples=60, deadline=None)
@given(manifests())
def test_what_is_written_comes_back_and_is_written_the_same(manifest: Manifest):
    written = manifest.to_json()
    read = Manifest.from_json(written)
    assert read == manifest
    assert read.to_json() == written


def test_text_is_sorted_indented_ascii_and_ends_with_a_newline():
    written = make_manifest().to_json()
    content = json.loads(written)
    assert written == json.dumps(content, indent=2, sort_keys=True) + "\n"
    assert written.isascii()
    assert content["selector"]["num_kept"] == 58
    assert content["graphs"]["vision"]["outputs"][0]["shape"] == [576, "hidden"]


def test_an_integer_is_accepted_where_a_number_is_expected():
    content = json.loads(make_manifest().to_json())
    content["selector"]["keep"] = 1
    content["checksum"] = checksum(content)
    keep = Manifest.from_json(json.dumps(content)).selector.keep
    assert keep == 1.0
    assert isinstance(keep, float)


@pytest.mark.parametrize(
    "dtype, expected", [("float16", 2 * 32 * 8 * 128 * 2), ("float32", 2 * 32 * 8 * 128 * 4)]
)
def test_kv_bytes_a_token_are_keys_and_values_of_every_layer(dtype: str, expected: int):
    assert KVCacheSpec(32, 8, 128, dtype).bytes_per_token == expected


@pytest.mark.parametrize(
    "field, value, expected, found",
    [
        ("selector/num_kept", 0, "1 to 576", "0"),
        ("selector/num_kept", 577, "1 to 576", "577"),
        ("selector/num_kept", 58.0, "an integer", "58.0"),
        ("selector/num_kept", True, "an integer", "true"),
        ("selector/num_kept", "58", "an integer", '"58"'),
        ("selector/keep", 0, "0 < keep <= 1", "0"),
        ("selector/keep", 1.5, "0 < keep <= 1", "1.5"),
        ("selector/nested", 1, "a boolean", "1"),
        ("selector/positions", "random", "contiguous, original", "random"),
        ("selector/parameters", [], "an object", "[]"),
        ("target", "cuda", "tensorrt-rtx", "cuda"),
        ("dialect", "trt", "ort, onnx, delta", "trt"),
        ("dtype", "bf16", "fp16, fp32", "bf16"),
        ("quant", 4, "an object or null", "4"),
        ("vision_quant", "int4", "int8", "int4"),
        ("prefill_quant", "int4", "int8", "int4"),
        ("max_prefill_len", 0, "at least 1", "0"),
        ("max_seq_len", 2046, "at least 2047", "2046"),
        ("max_weight_mib", 0, "at least 1", "0"),
        ("model", None, "an object", "null"),
        ("model/id", "", "printable", "''"),
        ("model/id", "\x1b[2J", "printable", "\\x1b"),
        ("model/vocab_size", -1, "at least 1", "-1"),
        ("kv_cache/dtype", "int64", "float16, float32", "int64"),
        ("graphs/vision/opset", 0, "at least 1", "0"),
        ("graphs/vision/path", "llm/model.onnx", "in files", "llm/model.onnx"),
        ("graphs/vision/inputs", [], "one or more", "[]"),
        (
            "graphs/vision/inputs/0/dtype",
            "bfloat16",
            "float32, float16, int64, int32, bool",
            "bfloat16",
        ),
        ("graphs/vision/inputs/0/shape/1", -3, "at least 0", "-3"),
        ("graphs/vision/inputs/0/shape/1", None, "an integer or a string", "null"),
        ("requires/onnxruntime", "1.22rc1", "such as 1.22", "1.22rc1"),
        ("tools/torch", 2, "a string", "2"),
    ],
)
def test_wrong_field_is_refused_by_name_with_expected_found_and_fix(
    field: str, value: object, expected: str, found: str
):
    lines = refusal_of({field: value}).split("\n")
    name = field.replace("/", ".").replace("inputs.0", "inputs[0]").replace("shape.1", "shape[1]")
    assert lines[0].startswith(f"manifest.json: {name} has ")
    assert expected in lines[1]
    assert found in lines[2]
    assert "divprune-export" in lines[3]
    assert "--force" in lines[3]


@pytest.mark.parametrize("digest", ["0" * 63, "0" * 65, "A" * 64, "0" * 63 + "g", "0" * 64 + "\n"])
def test_hash_that_is_no_sha256_is_refused(digest: str):
    files = {"vision/model.onnx": {"sha256": digest, "size": 3}}
    assert "files.vision/model.onnx.sha256 has" in refusal_of({"files": files})


@pytest.mark.parametrize(
    "path",
    [
        "../weights.bin",
        "llm/../../weights.bin",
        "llm/..",
        "/etc/passwd",
        "//host/share/file",
        "C:/weights.bin",
        "C:weights.bin",
        "llm\\model.onnx",
        "",
        ".",
        "./model.onnx",
        "llm//model.onnx",
        "llm/",
        "llm/\x00",
        "llm/\n",
        "manifest.json",
    ],
)
def test_file_path_that_is_not_plain_and_below_the_directory_is_refused(path: str):
    content = json.loads(make_manifest().to_json())
    files = {**content["files"], path: {"sha256": "0" * 64, "size": 3}}
    assert f"manifest.json: files.{printable(path)}" in refusal_of({"files": files})


@pytest.mark.parametrize("field", ["selector/num_kept", "files", "model/revision"])
def test_missing_field_is_refused_by_name(field: str):
    message = refusal_of(without=field)
    assert message.startswith(f"manifest.json: {field.replace('/', '.')} is missing")


@pytest.mark.parametrize("field", ["comment", "selector/keep_ratio", "graphs/vision/inputs/0/rank"])
def test_unknown_field_is_refused_by_name(field: str):
    message = refusal_of({field: 1})
    name = field.replace("/", ".").replace("inputs.0", "inputs[0]")
    assert message.startswith(f"manifest.json: {name} is unknown")


def test_newer_schema_is_refused_before_everything_else_with_the_upgrade_command():
    with pytest.raises(EngineDirectoryError) as caught:
        Manifest.from_json('{"schema_version": 3, "nothing": "else is known"}')
    message = str(caught.value)
    assert "schema_version is newer" in message
    assert "schema version 2" in message
    assert "install the divprune-edge that wrote it" in message


@pytest.mark.parametrize("version", ["0", "-1", '"1"', "1.0", "true", "null", "[1]"])
def test_schema_version_that_is_older_or_no_integer_is_refused(version: str):
    with pytest.raises(EngineDirectoryError, match="schema_version") as caught:
        Manifest.from_json(f'{{"schema_version": {version}}}')
    assert "divprune-export" in str(caught.value)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        '{"schema_version": 1, "schema_version": 1}',
        '{"schema_version": NaN}',
        "[" * 100_000,
        '{"schema_version": ' + "9" * 10_000 + "}",
    ],
)
def test_text_that_is_no_json_object_is_refused(written: str):
    with pytest.raises(EngineDirectoryError, match=r"manifest\.json"):
        Manifest.from_json(written)


@pytest.mark.parametrize("depth", [990, 5000])
def test_deep_nesting_is_refused_without_a_crash(depth: int):
    written = make_manifest().to_json()
    nested = written.replace('"parameters": {}', '"parameters": {"x": HERE}')
    with pytest.raises(EngineDirectoryError, match=r"manifest\.json"):
        Manifest.from_json(nested.replace("HERE", "[" * depth + "]" * depth))


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), (1, 2), {1: "key"}, [b"bytes"], {"deep": [object()]}]
)
def test_selector_parameters_that_json_would_change_are_refused(value: object):
    with pytest.raises(EngineDirectoryError, match=r"parameters\.x"):
        SelectorInfo("s", 1, 0.5, 4, 2, "original", True, False, False, {"x": value})


def test_tensors_of_the_same_name_are_refused():
    tensor = TensorSpec("x", "float32", (1,))
    with pytest.raises(EngineDirectoryError, match="inputs"):
        GraphSpec("a.onnx", 17, (tensor, tensor), (tensor,))


def test_records_cannot_be_changed():
    with pytest.raises(AttributeError):
        RECORD.size = 4  # type: ignore[misc]


SPLIT = {
    "selector/inside_llm": True,
    "selector/parameters": {"layer": 2},
    "selector/keep": 0.0,
    "selector/num_kept": 0,
}


@pytest.mark.parametrize("layer", [0, 32, -1, 1.5, True, "2", None])
def test_a_split_decoder_needs_the_layer_that_it_is_split_at(layer: object):
    message = refusal_of({**SPLIT, "selector/parameters": {"layer": layer}})
    assert "selector.parameters.layer" in message
    assert "1 to 31: the model has 32 layers" in message


def test_a_split_decoder_needs_both_halves():
    assert "graphs.llm_front" in refusal_of(SPLIT)


def test_a_selection_that_reads_what_nobody_gives_is_refused():
    graph = json.loads(make_manifest().to_json())["graphs"]["vision"]  # reads pixel_values
    names = ("llm_front", "llm_back", "llm_selection")
    message = refusal_of({**SPLIT, **{f"graphs/{name}": graph for name in names}})
    assert "graphs.llm_selection.inputs" in message
    assert "visual_slots, visual_states" in message


def test_no_token_can_be_kept_inside_the_llm_only_and_then_keep_is_0():
    assert "selector.num_kept" in refusal_of({"selector/num_kept": 0})
    assert "selector.keep" in refusal_of({"selector/num_kept": 0, "selector/keep": 0.0})
    assert "selector.keep" in refusal_of({**SPLIT, "selector/keep": 0.1})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_seq_len": 2**31}, "max_seq_len"),
        ({"model__max_position_embeddings": 49}, "max_seq_len"),
        ({"max_prefill_len": 51}, "max_seq_len"),
        ({"selector__num_kept": 3}, "selector.num_kept"),
        ({"selector__num_image_tokens": 11}, "selector.num_image_tokens"),
        ({"selector__name": "../../x"}, "name"),
        ({"selector__name": "a b"}, "name"),
        ({"selector__name": ""}, "name"),
        ({"requires": {"onnxzuntime": "1"}}, "requires"),
        ({"requires": {"onnxruntime": "new"}}, "requires.onnxruntime"),
    ],
)
def test_values_that_contradict_each_other_are_refused_by_field(changes, field):
    spec = GraphSpec(
        "vision/model.onnx",
        20,
        (TensorSpec("pixel_values", "float32", (1, 3, 8, 8)),),
        (
            TensorSpec("image_features", "float32", (10, 32)),
            TensorSpec("selection_order", "int64", (4,)),
        ),
    )
    manifest = with_changes(example_manifest(), graphs={"vision": spec})
    assert Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(FieldError) as refused:
        with_changes(manifest, **changes)
    assert refused.value.field == field


def test_a_vision_graph_without_the_rows_that_the_decoder_adds_is_refused():
    rows = TensorSpec("deepstack_0", "float16", (1, "sequence", 8))
    logits = TensorSpec("logits", "float32", (1, 1, 9))
    llm = GraphSpec("vision/model.onnx", 20, (rows,), (logits,))
    with pytest.raises(EngineDirectoryError, match=r"graphs\.vision\.outputs") as caught:
        with_changes(example_manifest(), graphs={**example_manifest().graphs, "llm": llm})
    assert "deepstack_0" in str(caught.value)
