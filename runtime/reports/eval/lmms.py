"""The model ``divprune`` of lmms-eval, so that its benchmarks run through the engines.

    lmms-eval --model divprune --model_args engine_dir=ENGINE_DIR,keep=0.1 --tasks pope

lmms-eval finds this module by the entry point group ``lmms_eval.models``. It brings torch, so it
is imported only when lmms-eval itself asks for the class: the device does not need it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import OptionError
from divprune.runtime.inputs.messages import question
from divprune.runtime.reports.eval.evaluate import OF_ONE_SAMPLE

if TYPE_CHECKING:
    from divprune.runtime.generation.sampling import SamplingOptions

__all__ = ["cut", "manifest", "sampling_options"]

logger = logging.getLogger(__name__)

_CLASS = "DivPrune"
_MAX_NEW_TOKENS = 128


def manifest() -> Any:
    """The entry point of lmms-eval: the model's name and the path of its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="divprune", simple_class_path=f"{__name__}.{_CLASS}")


def __getattr__(name: str) -> Any:
    """The class, made when it is first asked for: its base is lmms-eval's."""
    if name != _CLASS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _make_class()


@cache
def _make_class() -> type:
    from lmms_eval.api.model import lmms
    from tqdm import tqdm

    class DivPrune(lmms):  # type: ignore[misc, unused-ignore]
        """Greedy (or sampled) answers of an engine directory.

        Args:
            engine_dir: From divprune-export.
            keep: Fraction of visual tokens kept, or ``auto:C``; None is as exported.
            backend: As ``divprune-run --backend``.
            backend_device: ``cpu`` or ``cuda``, None is cuda with TensorRT and cpu otherwise;
                lmms-eval's own ``device`` is torch's.
            threads: Threads inside one operator.
            batch_size: Must be 1, the only one there is.
        """

        is_simple = True

        def __init__(
            self,
            engine_dir: str,
            keep: float | str | None = None,
            backend: str | None = None,
            backend_device: str | None = None,
            threads: int | None = None,
            batch_size: int | str = 1,
            **unused: Any,
        ) -> None:
            super().__init__()
            _check_arguments(batch_size, unused)
            from divprune.runtime.directory.keep import parse_keep
            from divprune.runtime.generation.kept_tokens import resolve_keep
            from divprune.runtime.pipeline import Pipeline

            self._keep = None if keep is None else parse_keep(keep)
            self._pipeline = Pipeline.from_dir(
                engine_dir, backend=backend, device=backend_device, threads=threads
            )
            resolve_keep(self._pipeline.manifest, self._keep)

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """One answer for each request, in their order; an empty one where a sample fails.

            What goes wrong with one sample is logged and counted and the rest goes on; what would
            go wrong with all of a task is raised before the first answer.
            """
            for request in requests:
                sampling_options(request.args[1])
            answers = [self._try(*request.args) for request in tqdm(requests, desc="divprune")]
            if failed := answers.count(None):
                logger.warning(
                    "%d of %d samples have no answer and count as empty ones", failed, len(answers)
                )
            return [answer or "" for answer in answers]

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Not offered: the engines return one row of logits, the last."""
            raise NotImplementedError("divprune answers generate_until tasks only")

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            """Not offered: the prompt of an engine directory has one turn."""
            raise NotImplementedError("divprune answers tasks of one round only")

        def _try(
            self, context: str, options: Mapping[str, Any], visual: Any, doc_id: int, *where: str
        ) -> str | None:
            try:
                return self._answer(context, options, visual, doc_id, *where)
            except OF_ONE_SAMPLE as error:
                logger.warning("%s, sample %s: %s", "/".join(where), doc_id, error)
                return None

        def _answer(
            self,
            context: str,
            options: Mapping[str, Any],
            doc_to_visual: Any,
            doc_id: int,
            task: str,
            split: str,
        ) -> str:
            visuals = doc_to_visual(self.task_dict[task][split][doc_id])
            generation = self._pipeline.chat(
                question(context, list(_pictures(visuals))),
                keep=self._keep,
                max_new_tokens=int(options.get("max_new_tokens") or _MAX_NEW_TOKENS),
                sampling=sampling_options(options),
            )
            text = cut(generation.result.text, options.get("until"))
            self.cache_hook.add_partial("generate_until", (context, options), text)
            return text

    return DivPrune


def sampling_options(options: Mapping[str, Any]) -> SamplingOptions:
    """A task's ``generation_kwargs`` as sampling options; greedy unless it asks to sample."""
    from divprune.runtime.generation.sampling import SamplingOptions

    temperature = float(options.get("temperature") or 0.0)
    if options.get("do_sample") is False or temperature == 0:
        return SamplingOptions()
    if int(options.get("num_beams") or 1) > 1:
        raise OptionError("divprune has no beam search", expected="num_beams of 1", found=options)
    return SamplingOptions(temperature, float(options.get("top_p") or 1.0))


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The answer up to the first of the stop strings."""
    stops = [until] if isinstance(until, str) else list(until or ())
    ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _pictures(visuals: Any) -> Iterator[Any]:
    """Pictures of a document, however deep its lists."""
    if isinstance(visuals, (list, tuple)):
        for visual in visuals:
            yield from _pictures(visual)
    elif visuals is not None:
        yield visuals


def _check_arguments(batch_size: int | str, unused: Mapping[str, Any]) -> None:
    if str(batch_size) != "1":
        raise OptionError(
            "divprune answers one at a time", expected="batch_size=1", found=batch_size
        )
    known_of_harness = {"device", "max_batch_size"}
    if unknown := sorted(set(unused) - known_of_harness):
        raise OptionError(
            "--model_args has something that divprune does not know",
            expected="engine_dir, keep, backend, backend_device, threads",
            found=", ".join(unknown),
        )
