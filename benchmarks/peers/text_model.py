"""Write the language model of a LLaVA checkpoint as a checkpoint of its own.

    python benchmarks/peers/text_model.py /tmp/llava-1.1b /tmp/llama-1.1b

Some runtimes take the text model only. Tensors are copied one at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

_PREFIX = "language_model."
_COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a LLaVA checkpoint in the hub's layout")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for shard in sorted(args.checkpoint.glob("*.safetensors")):
        with safe_open(shard, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (a method of the file, not of a dict)
                if name.startswith(_PREFIX):
                    tensors[name.removeprefix(_PREFIX)] = file.get_tensor(name)
    save_file(tensors, args.output / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((args.checkpoint / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"] | {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (args.output / "config.json").write_text(json.dumps(text, indent=2), encoding="utf-8")
    for name in _COPIED:
        shutil.copy(args.checkpoint / name, args.output / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
