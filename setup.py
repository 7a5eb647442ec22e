"""Refuse a copy of the sources whose symbolic links were lost, with the way to get them back."""

from pathlib import Path

from setuptools import setup

for link in Path(__file__).parent.glob("src/divprune/*"):
    if link.name in ("configs", "export", "plugins", "runtime") and not link.is_dir():
        raise SystemExit(
            f"error: {link} is no link to {link.name}/: this copy lost its symbolic links\n"
            "  fix: git clone (with core.symlinks on Windows), or install the wheel"
        )

setup()
