"""The command that writes an engine directory anew, as it was or with something changed."""

from __future__ import annotations

import shlex
from pathlib import Path

from divprune.runtime.directory.manifest import Manifest

__all__ = ["export_command"]


def export_command(
    manifest: Manifest,
    output: Path | None = None,
    *,
    keep: float | None = None,
    target: str | None = None,
    baseline: bool | None = None,
) -> str:
    """``divprune-export`` with the options of an export; what is given here is changed.

    What the other target has no room for (int8 beside TensorRT, the size of its weights) is left
    out.

    Args:
        manifest: Of the export.
        output: Where to write it, in place of what is there; None leaves the name to the tool.
        keep: Another fraction.
        target: Another target.
        baseline: Whether keep 1.0 is to be there.
    """
    selector, target = manifest.selector, target or manifest.target
    parameters = selector.parameters
    flags = {name: str(parameters[name]) for name in ("seed", "layer", "tau") if name in parameters}
    keep = keep or selector.keep
    most = manifest.max_weight_mib if target == manifest.target else None
    options = {
        "--model": manifest.model.id,
        "--revision": manifest.model.revision,
        "--selector": selector.name,
        **{f"--{name}": value for name, value in flags.items()},
        "--keep": str(keep) if keep else None,
        "--positions": selector.positions,
        "--target": target,
        "--dtype": manifest.dtype,
        **_quant_options(manifest, int8=target == "onnxruntime"),
        "--max-seq-len": str(manifest.max_seq_len),
        "--max-image-tokens": str(manifest.dims["tokens"].maximum)
        if manifest.has_variable_tokens
        else None,
        "--max-weight-mib": None if most is None else str(most),
        "--output": None if output is None else str(output),
    }
    words = ["divprune-export"]
    for option, value in options.items():
        words += [option, value] if value is not None else []
    with_baseline = manifest.baseline if baseline is None else baseline
    words += [] if with_baseline or keep == 1.0 else ["--no-baseline"]
    return shlex.join([*words, *(["--force"] if output is not None else [])])


def _quant_options(manifest: Manifest, *, int8: bool) -> dict[str, str | None]:
    """Those that a quantised checkpoint does not need are left out, and int8 if it may not be."""
    quant = manifest.quant
    options = {
        "--vision-quant": manifest.vision_quant if int8 else None,
        "--prefill-quant": manifest.prefill_quant if int8 else None,
    }
    if quant is None or quant.method in ("awq", "gptq") or (quant.bits == 8 and not int8):
        return options
    options |= {"--quant": quant.scheme}
    return options | ({"--quant-method": quant.method} if quant.bits == 4 else {})
