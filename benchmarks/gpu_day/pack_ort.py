"""Make an onnxruntime-gpu wheel small enough to travel.

    python benchmarks/gpu_day/pack_ort.py WHEEL FOLDER [ARCHITECTURE, default 90]

Zeroes the machine code for other architectures inside the CUDA provider (the driver reads only that
of its own GPU), then compresses: ort_cuda.tar.xz (the provider) and ort_rest.tar.xz (all else).
"""

from __future__ import annotations

import argparse
import io
import lzma
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

_FATBIN = struct.pack("<I", 0xBA55ED50)
_FATBIN_HEADER = 16
# The Python module holds the core itself; these are of no use to it.
_LEFT_OUT = ("/transformers/", "/tools/", "libonnxruntime.so", "providers_tensorrt.so")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("architecture", type=int, nargs="?", default=90)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(arguments.wheel) as wheel:
        packs: dict[str, list[str]] = {"ort_cuda": [], "ort_rest": []}
        for name in wheel.namelist():
            if not name.endswith("/") and not any(part in name for part in _LEFT_OUT):
                pack = "ort_cuda" if name.endswith("providers_cuda.so") else "ort_rest"
                packs[pack].append(name)
        for pack, names in packs.items():
            path = arguments.folder / f"{pack}.tar.xz"
            _write(wheel, path, names, arguments.architecture if pack == "ort_cuda" else None)
            print(path, f"{path.stat().st_size / 2**20:.1f} MiB")


def _write(wheel: zipfile.ZipFile, path: Path, names: list[str], architecture: int | None) -> None:
    with lzma.open(path, "wb", preset=6) as out, tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            content = wheel.read(name)
            if architecture is not None:
                content = thin(content, architecture)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))


def thin(content: bytes, architecture: int) -> bytes:
    """The same library with zeros instead of machine code for other architectures."""
    data, at, kept, gone = bytearray(content), 0, 0, 0
    while (at := data.find(_FATBIN, at)) >= 0:
        version, header, size = struct.unpack_from("<HHQ", data, at + 4)
        end = at + header + size
        if version != 1 or header != _FATBIN_HEADER or end > len(data):
            at += 4
            continue
        entry = at + header
        while entry < end:
            _, _, head, padded = struct.unpack_from("<HHIQ", data, entry)
            if head == 0:
                break
            if struct.unpack_from("<I", data, entry + 28)[0] == architecture:
                kept += padded
            else:
                data[entry + head : entry + head + padded] = bytes(padded)
                gone += padded
            entry += head + padded
        at = end
    mib = 2**20
    print(f"sm_{architecture}: {kept / mib:.0f} MiB kept, {gone / mib:.0f} zeroed", file=sys.stderr)
    return bytes(data)


if __name__ == "__main__":
    main()
