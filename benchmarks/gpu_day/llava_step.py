"""transformers at LLaVA-1.5-7B's shape, random weights made on the device: keep 1.0 and 0.1."""

from __future__ import annotations

import statistics
import time

from benchmarks.gpu_day.kernel_steps import open_kernel, timed, torch_on_device
from benchmarks.gpu_day.report import DEVICE, QUICK, save

KEEP = 0.1
STAGES = ("vision", "selection", "prefill", "ttft")


def llava() -> None:
    torch = torch_on_device()
    from benchmarks.transformers_divprune import TransformersLlava, select_tokens

    shape, dtype = ("llava-tiny", torch.float32) if QUICK else ("llava-1.5-7b", torch.float16)
    model = _make_model(torch, shape, dtype)
    theirs = object.__new__(TransformersLlava)
    theirs._device, theirs._dtype, theirs._model = DEVICE, dtype, model
    ours = _Ours(torch)
    contestants = {
        "keep 1.0": None,
        "keep 0.1, published loop": lambda features: select_tokens(features, KEEP),
        "keep 0.1, our kernel": ours,
    }
    size, image = model.config.vision_config.image_size, model.config.image_token_index
    pixels = torch.randn(1, 3, size, size, device=DEVICE, dtype=dtype)
    ids = torch.tensor([1, *range(5, 20), image, *range(30, 55)], device=DEVICE)
    rounds, found = 3 if QUICK else 12, {name: [] for name in contestants}
    for number in range(rounds + 2):
        for name, select in contestants.items():
            sample = _answer(torch, theirs, pixels, ids, select, 8 if number % 4 == 0 else 0)
            if number >= 2:
                found[name].append(sample)
    for name, samples in found.items():
        save("llava", **{name: _row(samples)})
    kept = [set(found[name][0]["kept"]) for name in list(contestants)[1:]]
    save("llava", kept_in_common=len(kept[0] & kept[1]), kept=len(kept[1]))
    if DEVICE == "cuda":
        with torch.inference_mode():
            features = theirs._features(pixels)
            for name, select in list(contestants.items())[1:]:
                took = timed(torch, lambda choose=select: choose(features), 3, 10)
                save("llava", **{f"selection alone, {name}": took})
        save("llava", peak_gib=torch.cuda.max_memory_allocated() / 2**30)


def _make_model(torch, shape: str, dtype):
    from transformers import LlavaForConditionalGeneration

    from divprune.export.checkpoint.random import shape_config

    begin = time.perf_counter()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(DEVICE):
        model = LlavaForConditionalGeneration._from_config(shape_config(shape), dtype=dtype)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02)
            elif "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.zero_()
    save(
        "llava",
        shape=shape,
        seconds_to_make=time.perf_counter() - begin,
        attention=model.config.text_config._attn_implementation,
        gib=sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30,
    )
    return model.eval()


class _Ours:
    """Similarities and seed in torch, the loop by the kernel."""

    def __init__(self, torch) -> None:
        self._torch, self._raw = torch, open_kernel()

    def __call__(self, features):
        from divprune.plugins.node import plan_launch

        torch, n = self._torch, len(features)
        k = max(1, round(KEEP * n))
        wide = features.float()
        unit = wide / wide.norm(dim=1, keepdim=True).clamp_min(1e-12)
        gram = (unit @ unit.T).contiguous()
        alone = gram.clone().fill_diagonal_(-9)
        seed = alone.max(dim=1).values.argmin().to(torch.int32).repeat(k)
        order = torch.empty(k, dtype=torch.int32, device=features.device)
        cover = torch.empty(k, device=features.device)
        places = tuple(each.data_ptr() for each in (gram, seed, order, cover))
        plan, stream = plan_launch(n, k), torch.cuda.current_stream().cuda_stream
        self._raw.launch(plan.entry, plan.threads, places, n, k, stream)
        return order.long()


def _answer(torch, theirs, pixels, ids, select, tokens: int) -> dict:
    from transformers import DynamicCache

    with torch.inference_mode():
        start = theirs._now()
        features = theirs._features(pixels)
        seen, kept = theirs._now(), None
        if select is not None:
            kept = torch.sort(select(features)).values
            features = features[kept]
        chosen = theirs._now()
        embeds = theirs._splice(ids, features)
        cache = DynamicCache(config=theirs._model.config.text_config)
        token = theirs._step(embeds, cache)
        int(token)
        first = theirs._now()
        for _ in range(tokens):
            token = theirs._step(theirs._embed(token[None]), cache)
            int(token)
        last = theirs._now()
    return {
        "vision": (seen - start) * 1e3,
        "selection": (chosen - seen) * 1e3,
        "prefill": (first - chosen) * 1e3,
        "ttft": (first - start) * 1e3,
        "per_token": (last - first) * 1e3 / tokens if tokens else None,
        "prompt": embeds.shape[1],
        "kept": [] if kept is None else kept.tolist(),
    }


def _row(samples: list[dict]) -> dict:
    row = {stage: round(statistics.median(s[stage] for s in samples), 3) for stage in STAGES}
    tokens = [s["per_token"] for s in samples if s["per_token"] is not None]
    row["per_token"] = round(statistics.median(tokens), 3) if tokens else None
    return row | {"prompt": samples[0]["prompt"], "rounds": len(samples)}
