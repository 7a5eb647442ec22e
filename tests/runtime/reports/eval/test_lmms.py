from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from divprune.runtime import Pipeline
from divprune.runtime.errors import OptionError
from divprune.runtime.generation.sampling import SamplingOptions
from divprune.runtime.reports.eval import lmms as adapter
from divprune.runtime.reports.eval.lmms import cut, sampling_options
from tests.runtime.reports.eval.lmms_task import TASK, write_task

QUESTION = "What is in the picture?"
needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason='lmms-eval is not installed: pip install "divprune-edge[lmms-eval]"',
)


@pytest.mark.parametrize(
    ("until", "expected"),
    [(None, "yes. no"), ([". ", "no"], "yes"), ("yes", ""), (["", "?"], "yes. no")],
)
def test_an_answer_ends_at_the_first_stop_string(until, expected):
    assert cut("yes. no", until) == expected


def test_an_answer_is_greedy_unless_the_task_asks_to_sample():
    assert sampling_options({"temperature": 0, "top_p": None}) == SamplingOptions()
    assert sampling_options({"temperature": 0.7, "do_sample": False}) == SamplingOptions()
    sampled = sampling_options({"temperature": 0.7, "top_p": 0.9, "do_sample": True})
    assert sampled == SamplingOptions(0.7, 0.9)


def test_a_task_that_asks_for_beams_is_refused():
    with pytest.raises(OptionError, match="beam"):
        sampling_options({"temperature": 1.0, "num_beams": 4})


class Harness:
    """What the adapter uses of its base class, where lmms-eval itself is not installed."""

    def __init__(self):
        self.task_dict = {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


@pytest.fixture
def model(engine_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """The adapter's class around the real pipeline, on documents that are pictures."""
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["lmms_eval.api.model"], "lmms", Harness, raising=False)
    adapter._make_class.cache_clear()
    yield adapter.DivPrune(engine_dir=str(engine_dir), threads=1)
    adapter._make_class.cache_clear()


def _requests(model, documents, options=None):
    """A request for each (question, visuals)."""
    model.task_dict = {"task": {"test": [visuals for _, visuals in documents]}}
    options = {"max_new_tokens": 4, **(options or {})}
    return [
        SimpleNamespace(args=(text, options, lambda document: document, number, "task", "test"))
        for number, (text, _) in enumerate(documents)
    ]


_PICTURE = Image.linear_gradient("L").convert("RGB")
_UNANSWERABLE = {
    "the question holds the placeholder": ("<image>\nWhat?", [_PICTURE]),
    "the prompt is too long": ("word " * 3000, [_PICTURE]),
    "the question is empty": ("  ", [_PICTURE]),
    "half a character": ("What\udc80?", [_PICTURE]),
    "no such file": (QUESTION, ["no-such-picture.png"]),
    "bytes that are no picture": (QUESTION, [b"GIF89a but not more"]),
    "an array of a scale that nobody knows": (QUESTION, [[_PICTURE, object()]]),
}


@pytest.mark.parametrize("bad", _UNANSWERABLE.values(), ids=_UNANSWERABLE.keys())
def test_a_sample_that_cannot_be_answered_is_counted_and_the_rest_goes_on(model, bad, caplog):
    good = (QUESTION, [_PICTURE])
    (right,) = model.generate_until(_requests(model, [good]))
    with caplog.at_level(logging.WARNING):
        answers = model.generate_until(_requests(model, [good, bad, good]))
    assert answers == [right, "", right]
    assert "task/test, sample 1" in caplog.text
    assert "1 of 3 samples" in caplog.text


def test_a_sample_without_a_picture_is_answered_as_text(model):
    for visuals in (None, [], [None], [[]]):
        (answer,) = model.generate_until(_requests(model, [("2 + 2 = ?", visuals)]))
        assert (
            answer
            == model._pipeline.chat(
                [{"role": "user", "content": "2 + 2 = ?"}], max_new_tokens=4
            ).result.text
        )


def test_what_goes_wrong_with_every_sample_is_said_before_the_first(model):
    requests = _requests(model, [(QUESTION, [_PICTURE])], {"temperature": 1.0, "num_beams": 4})
    with pytest.raises(OptionError, match="beam"):
        model.generate_until(requests)


@needs_lmms_eval
def test_lmms_eval_finds_the_model_by_its_name():
    from lmms_eval.models import get_model

    assert get_model("divprune").__name__ == "DivPrune"


@needs_lmms_eval
def test_a_task_of_lmms_eval_gets_the_answers_of_the_pipeline(engine_dir: Path, tmp_path: Path):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    pictures = write_task(tmp_path / "first", ["", ""], QUESTION)
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    right = pipeline.generate(pictures / "0.png", QUESTION, keep=0.1, max_new_tokens=8).result.text
    task = write_task(tmp_path / "task", [right, "something else"], QUESTION)
    found = simple_evaluate(
        model="divprune",
        model_args=f"engine_dir={engine_dir},keep=0.1,threads=1",
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(task), include_defaults=False),
        batch_size=1,
        device="cpu",
        bootstrap_iters=0,
    )
    assert found["results"][TASK]["agreement,none"] == 0.5
    assert found["samples"][TASK][0]["filtered_resps"] == [right]


@needs_lmms_eval
def test_a_model_argument_nobody_knows_is_refused(engine_dir: Path):
    from lmms_eval.models import get_model

    model = get_model("divprune")
    with pytest.raises(OptionError, match=r"(?s)does not know.*kep"):
        model.create_from_arg_string(f"engine_dir={engine_dir},kep=0.1", {"batch_size": 1})
    with pytest.raises(OptionError, match="one at a time"):
        model.create_from_arg_string(f"engine_dir={engine_dir}", {"batch_size": 8})
