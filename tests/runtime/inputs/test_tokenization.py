"""Tokenizer: equal to transformers, and streams that never show half a character."""

from __future__ import annotations

import functools
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from divprune.runtime.errors import EngineDirectoryError, UnsupportedError
from divprune.runtime.inputs.tokenization import TextTokenizer, unfinished_bytes
from tests.runtime.tokenizers_for_tests import KINDS, make_tokenizer, save_tokenizer

TEXTS = [
    "What is in this picture?",
    "  two  spaces \n\nand lines\t",
    "naïve café, 日本語の絵, 🐕‍🦺 and \u0301 alone",
    "",
    " ",
    "don't stop . , !",
    "a<image>\nb <image><image> c",
]


@functools.cache
def text_tokenizer(kind: str) -> TextTokenizer:
    tokenizer, names = make_tokenizer(kind)
    return TextTokenizer(tokenizer, names)


def stream_all(tokenizer: TextTokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


# --- equality with transformers


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_transformers(tmp_path, kind, text):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tmp_path, kind)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = TextTokenizer.from_dir(tmp_path)
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "Qwen2Tokenizer"])
def test_directories_that_transformers_saves_are_read_as_it_reads_them(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    tokenizer, names = make_tokenizer("metaspace" if name == "LlamaTokenizer" else "byte_level")
    model = json.loads(tokenizer.to_str())["model"]
    theirs = getattr(transformers, name)(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], **names
    )
    theirs.add_special_tokens({"extra_special_tokens": ["<image>"]})
    theirs.save_pretrained(tmp_path)
    ours = TextTokenizer.from_dir(tmp_path)
    assert ours.special_tokens == theirs.special_tokens_map
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"], True)


def test_named_tokens_equal_transformers_in_every_spelling(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False},
        "image_token": "<image>",
        "extra_special_tokens": {"video_token": "<unk>"},
        "add_bos_token": True,
        "pad_token": None,
    }
    save_tokenizer(tmp_path, "metaspace", **config)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = TextTokenizer.from_dir(tmp_path)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.special_tokens["bos_token"] == "<s>"
    assert ours.special_tokens["video_token"] == "<unk>"


# --- encoding


def test_bos_is_added_once_only():
    tokenizer = text_tokenizer("metaspace")
    plain = tokenizer.encode("Describe it")
    assert plain[0] == 1
    assert plain.count(1) == 1
    assert tokenizer.encode("<s>Describe it").count(1) == 1


def test_tokenizer_without_bos_adds_nothing():
    tokenizer = text_tokenizer("byte_level")
    assert tokenizer.decode(tokenizer.encode("<s>A")) == "<s>A"


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path, kind):
    tokenizer, names = make_tokenizer(kind)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=500)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    text = "Describe the image in detail, please."
    ids = TextTokenizer.from_dir(tmp_path).encode(text)
    assert ids == text_tokenizer(kind).encode(text)
    assert len(ids) > 3


def test_split_special_tokens_is_honoured(tmp_path):
    save_tokenizer(tmp_path, "byte_level", split_special_tokens=True)
    image = text_tokenizer("byte_level").encode("<image>")
    assert len(image) == 1
    assert image[0] not in TextTokenizer.from_dir(tmp_path).encode("<image>")


def test_ids_without_a_token_are_left_out(kind):
    tokenizer = text_tokenizer(kind)
    ids = tokenizer.encode("a cat")
    assert tokenizer.decode([*ids, 31_999]) == tokenizer.decode(ids) == "a cat"
    assert "".join(stream_all(tokenizer, [*ids, 31_999])) == "a cat"


# --- damaged and unsupported files


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"model": {"type": "BPE"', "\x00"])
def test_damaged_tokenizer_is_an_engine_directory_error(tmp_path, content):
    save_tokenizer(tmp_path, "byte_level")
    file = tmp_path / "tokenizer.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(EngineDirectoryError, match=r"tokenizer\.json is (missing|not|damaged)"):
        TextTokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_damaged_tokenizer_config_is_an_engine_directory_error(tmp_path, content):
    save_tokenizer(tmp_path, "byte_level")
    file = tmp_path / "tokenizer_config.json"
    file.unlink() if content is None else file.write_text(content)
    damaged = r"tokenizer_config\.json is (missing|not|damaged)"
    with pytest.raises(EngineDirectoryError, match=damaged):
        TextTokenizer.from_dir(tmp_path)


def test_clean_up_is_ignored_for_bpe_as_in_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tmp_path, kind, clean_up_tokenization_spaces=True)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = TextTokenizer.from_dir(tmp_path)
    ids = ours.encode("stop . don 't !")
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "stop . don 't !"


def test_clean_up_that_would_apply_is_refused():
    words = Tokenizer(models.WordLevel({"a": 0, ".": 1}, unk_token="a"))
    with pytest.raises(UnsupportedError, match="clean_up_tokenization_spaces"):
        TextTokenizer(words, {"clean_up_tokenization_spaces": True})


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.BPEDecoder(),
        decoders.CTC(),
        decoders.Strip(content=" ", right=1),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("a b", "c")]),
    ],
    ids=lambda decoder: type(decoder).__name__,
)
def test_decoder_that_rewrites_shown_text_is_refused(decoder):
    tokenizer, names = make_tokenizer("byte_level")
    tokenizer.decoder = decoder
    with pytest.raises(UnsupportedError, match="cannot be streamed"):
        TextTokenizer(tokenizer, names)


# --- streaming


def expected_stream(tokenizer: TextTokenizer, ids: list[int]) -> str:
    """``decode(ids)`` less what an unfinished character at the end decodes to."""
    shown = [token_id for token_id in ids if not tokenizer.is_hidden(token_id)]
    parts = []
    for token_id in reversed(shown):
        part = tokenizer.partial_bytes(token_id)
        if part is None:
            break
        parts.append(part)
    cut = unfinished_bytes(b"".join(reversed(parts)))
    if not cut:
        return tokenizer.decode(ids)
    if tokenizer.decodes_bytes_in_runs:  # a token is a byte
        return tokenizer.decode(shown[:-cut])
    whole = tokenizer.decode(ids)
    assert whole.endswith("\ufffd")
    return whole[:-1]


def token_ids(kind: str) -> st.SearchStrategy[list[int]]:
    """Any ids, with bytes beyond ASCII and special tokens more often than by chance."""
    tokenizer = text_tokenizer(kind)
    everything = range(make_tokenizer(kind)[0].get_vocab_size() + 3)
    odd = [
        token_id
        for token_id in everything
        if tokenizer.is_hidden(token_id) or max(tokenizer.partial_bytes(token_id) or b"a") > 127
    ]
    return st.lists(st.sampled_from(everything) | st.sampled_from(odd), max_size=24)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_pieces_of_any_ids_join_to_the_decoded_text(kind, data):
    tokenizer = text_tokenizer(kind)
    ids = data.draw(token_ids(kind))
    assert "".join(stream_all(tokenizer, ids)) == expected_stream(tokenizer, ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_of_any_text_are_whole_characters(kind, text):
    tokenizer = text_tokenizer(kind)
    ids = tokenizer.encode(text)
    pieces = stream_all(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="aé日🐕 ", min_size=1, max_size=8), cut=st.integers(1, 12))
def test_character_cut_off_at_the_end_is_dropped(kind, text, cut):
    tokenizer = text_tokenizer(kind)
    ids = tokenizer.encode(text)
    shown = "".join(stream_all(tokenizer, ids[: max(0, len(ids) - cut)]))
    assert "\ufffd" not in shown
    assert tokenizer.decode(ids).startswith(shown)


def test_replacement_character_in_the_text_itself_is_shown(kind):
    tokenizer = text_tokenizer(kind)
    assert "".join(stream_all(tokenizer, tokenizer.encode("a\ufffd"))) == "a\ufffd"


def test_every_plain_word_is_shown_at_once(kind):
    tokenizer = text_tokenizer(kind)
    stream = tokenizer.stream()
    for token_id in tokenizer.encode("a cat and a dog"):
        assert stream.push(token_id) or tokenizer.is_hidden(token_id)
    assert stream.finish() == ""


def test_text_before_a_cut_character_does_not_wait_for_it():
    tokenizer = Tokenizer(models.BPE(vocab={"aÃ": 0, "©b": 1}, merges=[]))  # "a" C3, A9 "b"
    tokenizer.decoder = decoders.ByteLevel()
    assert stream_all(TextTokenizer(tokenizer, {}), [0, 1, 0]) == ["a", "éb", "a", ""]


def test_byte_tokens_wait_for_their_run_because_one_bad_byte_spoils_it():
    tokenizer = text_tokenizer("metaspace")
    a, dog = tokenizer.encode("a")[-1], tokenizer.encode("🐕")[-4:]
    bad = dog[1:2]
    assert stream_all(tokenizer, [*dog, a]) == ["", "", "", "", "🐕 a", ""]
    assert stream_all(tokenizer, [*dog, *bad, a])[-2:] == ["\ufffd" * 5 + " a", ""]


def test_finish_without_tokens_returns_nothing(kind):
    stream = text_tokenizer(kind).stream()
    assert stream.finish() == ""
    assert stream.finish() == ""


def test_tokenizer_without_decoder_streams_words_with_spaces():
    words = Tokenizer(models.WordLevel({"a": 0, "cat": 1}, unk_token="a"))
    pieces = stream_all(TextTokenizer(words, {}), [0, 1, 0])
    assert pieces == ["a", " cat", " a", ""]


# --- UTF-8


def test_unfinished_bytes_of_every_cut_character():
    for character in "aé߿ࠀ日퟿\ue000￿𐀀🐕\U0010ffff":
        data = character.encode()
        for size in range(len(data)):
            assert unfinished_bytes(b"z" + data[:size]) == size
        assert unfinished_bytes(data) == 0


def test_bytes_that_no_character_begins_with_are_not_unfinished():
    for data in (b"\x80", b"\xc0", b"\xc1", b"\xed\xa0", b"\xe0\x80", b"\xf0\x80", b"\xf4\x90"):
        assert unfinished_bytes(data) == 0
    assert unfinished_bytes(b"\xf5") == unfinished_bytes(b"\xff") == unfinished_bytes(b"") == 0


def test_unfinished_bytes_agrees_with_the_decoder_on_all_pairs():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    ours = TextTokenizer(tokenizer, {})
    spelled = {ours.partial_bytes(token_id): token_id for token_id in range(256)}
    assert sorted(spelled) == [bytes([byte]) for byte in range(256)]
    for first, second in itertools.product(spelled, repeat=2):
        data = first + second
        cut = unfinished_bytes(data)
        whole = data[: len(data) - cut].decode("utf-8", errors="replace")
        assert ours.decode([spelled[first], spelled[second]]) == whole + "\ufffd" * (cut > 0)
