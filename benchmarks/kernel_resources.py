"""What the selection kernel takes of a GPU, as ptxas reports it; no GPU is needed.

    python benchmarks/kernel_resources.py [--output benchmarks/results/kernel-resources.json]
    python benchmarks/kernel_table.py

ptxas comes with the CUDA toolkit. Any version will do: it compiles the shipped PTX.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

from divprune.plugins.node import MAX_TOKENS, plan_launch
from divprune.plugins.ptx import CLUSTER, GRID, HALF_GRAM, PTX_FILE, KernelFile, read_ptx
from divprune.runtime.cli.main_guard import run_guarded
from divprune.runtime.errors import BackendError

__all__ = ["main", "measure", "parse"]

RESULTS = Path(__file__).parent / "results"
CAPABILITIES = ("80", "86", "87", "89", "90", "110", "120")
MANY = (HALF_GRAM, GRID, CLUSTER)
_ENTRY = re.compile(
    r"Compiling entry function '(?P<entry>\w+)' for 'sm_\d+'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers, used (?P<barriers>\d+) barriers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_VERSION = re.compile(r"\bV(\d[\d.]+)")
_SHARED = re.compile(r"(\d+) bytes smem")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "kernel-resources.json")
    arguments = parser.parse_args(argv)
    return run_guarded(lambda: _run(arguments.output))


def measure() -> dict:
    """The resources of every entry on every compute capability."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        raise BackendError(
            "ptxas is not on the path", fix="install the CUDA toolkit and add its bin/ to PATH"
        )
    version = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True)
    return {
        "kind": "kernel-resources",
        "ptxas": _VERSION.findall(version.stdout)[-1],
        "ptx_sha256": hashlib.sha256(read_ptx().encode()).hexdigest(),
        "rows": [row for capability in CAPABILITIES for row in _compile(ptxas, capability)],
        "many": {file.ptx.name: _compile_many(ptxas, file) for file in MANY},
    }


def parse(report: str, capability: str) -> list[dict]:
    """The rows of ptxas' report on one compute capability, by tokens a thread."""
    rows = []
    for found in _ENTRY.finditer(report):
        shared = _SHARED.search(found["rest"])
        rows.append(
            {
                "capability": capability,
                "entry": found["entry"],
                "registers": int(found["registers"]),
                "shared_bytes": int(shared[1]) if shared else 0,
                "barriers": int(found["barriers"]),
                "stack_bytes": int(found["stack"]),
                "spill_bytes": int(found["stores"]) + int(found["loads"]),
            }
        )
    return sorted(rows, key=lambda row: _number(row["entry"]))


def _number(entry: str) -> int:
    """Tokens a thread, where the name ends in them."""
    number = entry.rpartition("_")[2]
    return int(number) if number.isdecimal() else 0


def _compile_many(ptxas: str, file: KernelFile) -> dict:
    """The kernels for many tokens, on every capability that the file is for."""
    oldest = int(file.architecture.rpartition("_")[2])
    capabilities = [each for each in CAPABILITIES if int(each) >= oldest]
    return {
        "ptx_sha256": hashlib.sha256(read_ptx(file.ptx).encode()).hexdigest(),
        "rows": [row for each in capabilities for row in _ask(ptxas, each, file.ptx)],
    }


def _ask(ptxas: str, capability: str, ptx: Path) -> list[dict]:
    command = [ptxas, f"-arch=sm_{capability}", "-v", ptx, "-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(
            f"ptxas does not compile {ptx.name} for sm_{capability}", found=done.stderr.strip()
        )
    return parse(done.stdout + done.stderr, capability)


def _compile(ptxas: str, capability: str) -> list[dict]:
    rows = _ask(ptxas, capability, PTX_FILE)
    expected = {plan_launch(tokens, 1).entry for tokens in range(1, MAX_TOKENS + 1)}
    assert {row["entry"] for row in rows} == expected
    return rows


def _run(output: Path) -> int:
    report = measure()
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    spilled = [row for row in report["rows"] if row["spill_bytes"] or row["stack_bytes"]]
    print(f"{output}: {len(report['rows'])} entries, {len(spilled)} of them spill")
    return 1 if spilled else 0


if __name__ == "__main__":
    raise SystemExit(main())
