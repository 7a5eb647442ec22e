"""Twenty unseen scenes as PNG files, with their questions and answers as JSON lines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from models.small_scenes.exam import ExamScene, make_exam

__all__ = ["main", "write_scenes"]

_FIRST = 10_000  # far from the scenes of the exam: these twenty count for no reported figure
_PLAIN, _HARD = 14, 6


def main() -> None:
    """The command line: ``python -m models.small_scenes.example_scenes``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    write_scenes(parser.parse_args().output)


def write_scenes(directory: Path) -> None:
    """Write ``scenes/00.png`` to ``scenes/19.png`` and ``questions.jsonl``."""
    exam = make_exam("test", _PLAIN, first=_FIRST) + make_exam("hard", _HARD, first=_FIRST)
    (directory / "scenes").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for number, item in enumerate(exam):
        name = f"scenes/{number:02}.png"
        Image.fromarray(item.pixels).save(directory / name, optimize=True)
        lines += [json.dumps(record) for record in _records(name, item)]
    (directory / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _records(name: str, item: ExamScene) -> list[dict[str, str]]:
    return [
        {"image": name, "question": question.text, "answer": question.answer, "type": question.kind}
        for question in item.questions
    ]


if __name__ == "__main__":
    main()
