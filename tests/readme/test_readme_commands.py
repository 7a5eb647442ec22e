"""Every command in the documentation works: it is run, or checked where it cannot run here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.readme.documents import Step, read_steps
from tests.readme.workplace import Workplace, serve

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def workplace(
    root: Path, tmp_path: Path, wheel_bin: Path, checkpoint: Callable[[str], Path], exports: Path
) -> Iterator[Workplace]:
    with serve(tmp_path) as web:
        yield Workplace(root, tmp_path, wheel_bin, web, checkpoint, exports)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_works_in_the_order_of_the_document(
    document: Path, workplace: Workplace
) -> None:
    for step in read_steps(document):
        try:
            workplace.check(step)
        except AssertionError as error:
            pytest.fail(f"{step.where}: {step.text}\n{error}", pytrace=False)


def test_readme_shows_the_demo_and_the_two_commands() -> None:
    commands = [step.text for step in read_steps(ROOT / "README.md")]
    for start in ("make demo", "divprune-export ", "divprune-run "):
        assert any(command.startswith(start) for command in commands), start


def test_steps_are_read_from_all_three_kinds_of_blocks(tmp_path: Path) -> None:
    document = tmp_path / "guide.md"
    document.write_text(
        "```bash\n# a comment\nmake \\\n  demo\n```\n"
        "<!-- readme-test: exit-code=2 -->\n```console\n$ divprune-run a b\nerror: no a\n```\n"
        "<!-- readme-test: parse-only -->\n\n```bash\ndivprune-run d p.jpg --device cuda\n```\n"
        "```python\nprint(1)\n```\n```json\n{}\n```\n"
    )
    assert read_steps(document) == [
        Step("guide.md:1", "bash", "make demo"),
        Step("guide.md:7", "bash", "divprune-run a b", exit_code=2),
        Step("guide.md:13", "bash", "divprune-run d p.jpg --device cuda", parse_only=True),
        Step("guide.md:16", "python", "print(1)\n"),
    ]


@pytest.mark.parametrize(
    "block", ["```sh\nmake\n```\n", "<!-- readme-test: skip -->\n```bash\n```\n"]
)
def test_block_that_would_escape_the_test_is_refused(tmp_path: Path, block: str) -> None:
    document = tmp_path / "guide.md"
    document.write_text(block)
    with pytest.raises(ValueError, match=r"guide\.md:\d"):
        read_steps(document)


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf somewhere",
        "make no-such-target",
        "pip install divprune-edge[no-such-extra]",
        "pip install something-else",
        "python no_such_script.py",
        "git clone https://example.org/other",
        "sudo apt install something-else",
        "sudo rm -rf /",
        "divprune-run ./no-such-dir photo.jpg",
        "divprune-run somewhere photo.jpg --device cuda --no-such-flag",
        "divprune-export --model nobody/knows-this --keep 0.1",
        "cat photo.jpg | rm -",
        "divprune-eval ./no-such-dir questions.jsonl",
        "lmms-eval --model divprune --model_args engine_dir=llava-1.5-7b-keep0.1,kep=0.1",
    ],
)
def test_wrong_command_is_found(workplace: Workplace, command: str) -> None:
    with pytest.raises(AssertionError):
        workplace.check(Step("here:1", "bash", command))


@pytest.mark.parametrize(
    "command",
    [
        "make test",
        "make venv PYTHON=python3.12",
        "git clone https://example.org/someone/divprune-edge",
        "cd divprune-edge",
        "python3 -m venv .venv",
        "python3 -m venv --system-site-packages .venv",
        "sudo apt install nvidia-jetpack",
        ". .venv/bin/activate",
        'pip install -c constraints.txt "divprune-edge[export,cpu]"',
        ".venv/bin/python -m pip install -e .[cpu]",
        "HF_HUB_OFFLINE=1 divprune-export --help",
        "lmms-eval --model divprune --model_args engine_dir=llava-1.5-7b-keep0.1 --tasks pope",
        "divprune-run llava-1.5-7b-keep0.1 photo.jpg --device cuda",
    ],
)
def test_right_command_is_accepted(workplace: Workplace, command: str) -> None:
    workplace.check(Step("here:1", "bash", command))
