"""A place where a document's commands run as a reader would run them, without a network.

Models on the hub are stood in for by tiny checkpoints in a hub cache of our own, pictures by
drawn ones, pictures on the web by a server on this machine.
"""

from __future__ import annotations

import http.server
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tomllib

from tests.readme.documents import Step

__all__ = ["Workplace", "serve"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECONDS = 300
STAND_INS = {
    "llava-hf/llava-1.5-7b-hf": "clip-llama-hub",
    "llava-hf/llava-1.5-13b-hf": "clip-llama-hub",
    "llava-hf/bakLlava-v1-hf": "clip-mistral-hub-gqa1",
    "llava-hf/llava-interleave-qwen-0.5b-hf": "siglip-qwen2-hub",
    "llava-hf/llava-interleave-qwen-7b-hf": "siglip-qwen2-hub",
}
_PICTURE = r"[\w./-]+\.(?:jpe?g|png)"
_PICTURE_URL = re.compile(rf"https?://{_PICTURE}")
_DATA = r"[\w.-]+\.jsonl"
_ENGINE_DIR = re.compile(r"(?:\./)?(?P<model>[\w.-]+)-keep(?P<keep>\d[\d.]*)/?")
_SEE_SYSTEM = "--system-site-packages"
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
_PARSE_ONLY = """
import argparse, functools, importlib, sys

def parse_and_leave(self, parse, *arguments, **options):
    parse(self, *arguments, **options)
    sys.exit(0)

for name in ("parse_args", "parse_intermixed_args"):
    whole = getattr(argparse.ArgumentParser, name)
    setattr(argparse.ArgumentParser, name, functools.partialmethod(parse_and_leave, whole))
module, function = sys.argv.pop(1).split(":")
getattr(importlib.import_module(module), function)()
sys.exit("the arguments were never parsed")
"""


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: requests are no news."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address under which this machine serves ``folder``."""
    handler = partial(_QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass(frozen=True)
class Workplace:
    """Runs or checks steps; every method raises AssertionError with what is wrong.

    Attributes:
        root: Repository root.
        folder: Where the commands run; what one leaves there, the next one finds.
        bin: Where the console scripts are that a user of the wheel has.
        web: Address that serves ``folder``.
        checkpoint: Writes a tiny checkpoint, given its name.
        exports: Where exports are kept that another document may mention as well.
    """

    root: Path
    folder: Path
    bin: Path
    web: str
    checkpoint: Callable[[str], Path]
    exports: Path

    def check(self, step: Step) -> None:
        """Run the step if it can run here; otherwise check what can be checked of it."""
        if step.language == "python":
            self._run_program(step)
            return
        segments = _segments(step.text)
        programs = [segment[0] for segment in segments]
        if all(program in self._runnable() for program in programs):
            self._run_or_parse(step, segments)
            return
        checks = {
            "make": self._check_make,
            "pip": self._check_pip,
            "python": self._check_python,
            "git": _check_git,
            "lmms-eval": _check_lmms_eval,
            "sudo": _check_apt,
            "cd": _check_one_argument,
            "source": _check_one_argument,
            ".": _check_one_argument,
        }
        program = re.sub(r"^python3(\.\d+)?$", "python", Path(programs[0]).name or programs[0])
        assert len(segments) == 1, f"the test does not know this pipeline: {step.text}"
        assert program in checks, f"the test does not know: {step.text}"
        checks[program](segments[0][1:])

    def _runnable(self) -> dict[str, str]:
        """Programs that are run, and where each starts."""
        project = tomllib.loads((self.root / "pyproject.toml").read_text())["project"]
        return project["scripts"] | {
            "optimum-cli": "optimum.commands.optimum_cli:main",
            "cat": "",
        }

    def _run_or_parse(self, step: Step, segments: list[list[str]]) -> None:
        words = [word for segment in segments for word in segment]
        if step.parse_only or "cuda" in words:
            for program, *arguments in segments:
                start = [str(self.bin / "python"), "-c", _PARSE_ONLY, self._runnable()[program]]
                self._run([*start, *arguments], 0)
            return
        self._provide(words)
        line = _PICTURE_URL.sub(lambda url: f"{self.web}/{Path(url[0]).name}", step.text)
        printed = self._run(["bash", "-euo", "pipefail", "-c", line], step.exit_code)
        if "--json" in segments[-1] and step.exit_code == 0 and ">" not in line:
            assert isinstance(json.loads(printed), dict), printed

    def _run_program(self, step: Step) -> None:
        compile(step.text, step.where, "exec")
        if step.parse_only:
            return
        self._provide(re.findall(r"""["']([^"'\n]+)["']""", step.text))
        self._run([str(self.bin / "python"), "-c", step.text], step.exit_code)

    def _run(self, command: list[str], exit_code: int) -> str:
        environment = os.environ | {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "HF_HOME": str(self.folder / ".hub"),
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=environment,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == exit_code, (
            f"exit code {done.returncode}, expected {exit_code}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def _provide(self, words: list[str]) -> None:
        """Put in place what a reader would have: pictures, models, earlier exports."""
        for word in words:
            if re.fullmatch(_PICTURE, word) or _PICTURE_URL.fullmatch(word):
                self._draw(Path(word).name if "://" in word else word)
            elif re.fullmatch(_DATA, word):
                self._write_questions(word)
            elif (match := _ENGINE_DIR.fullmatch(word)) and "--model" not in words:
                self._export(word, match["model"], match["keep"])
        if "--model" in words:
            self._provide_model(words[words.index("--model") + 1])

    def _draw(self, name: str) -> None:
        from PIL import Image

        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.radial_gradient("L").resize((120, 80)).convert("RGB").save(path)

    def _write_questions(self, name: str) -> None:
        self._draw("picture.png")
        samples = (
            {"image": "picture.png", "question": question, "answer": "yes"}
            for question in ("Is it round?", "Is it grey?")
        )
        (self.folder / name).write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))

    def _export(self, output: str, model: str, keep: str) -> None:
        """Make an engine directory that the document mentions but does not export."""
        if (self.folder / output).exists():
            return
        kept = self.exports / f"{model}-{keep}"
        if not kept.exists():
            self._provide_model(model)
            command = ["divprune-export", "--model", model, "--keep", keep, "--output", str(kept)]
            self._run(command, 0)
        shutil.copytree(kept, self.folder / output)

    def _provide_model(self, model: str) -> None:
        from divprune.configs import list_presets, load_preset

        if model.startswith("./"):
            self._link(self.folder / model, "clip-llama-hub")
            return
        hub_id = load_preset(model).hub_id if model in list_presets() else model
        assert hub_id in STAND_INS, f"no tiny checkpoint stands in for {hub_id}"
        repository = self.folder / ".hub" / "hub" / f"models--{hub_id.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(COMMIT)
        self._link(repository / "snapshots" / COMMIT, STAND_INS[hub_id])

    def _link(self, path: Path, name: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to(self.checkpoint(name), target_is_directory=True)

    def _check_make(self, arguments: list[str]) -> None:
        command = ["make", "--dry-run", "--directory", str(self.root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _check_pip(self, arguments: list[str]) -> None:
        assert arguments[0] in ("install", "wheel"), f"the test does not know: pip {arguments[0]}"
        project = tomllib.loads((self.root / "pyproject.toml").read_text())["project"]
        ours = re.compile(rf"(?:{project['name']}|\.|\S+\.whl)(?:\[(?P<extras>[\w,-]+)\])?")
        named = [match for word in arguments[1:] if (match := ours.fullmatch(word))]
        assert named, "installs nothing of this project"
        for match in named:
            extras = set((match["extras"] or "").split(",")) - {""}
            assert extras <= project["optional-dependencies"].keys(), f"no such extra: {extras}"
        for word, value in itertools.pairwise(arguments):
            if word in ("-c", "--constraint"):
                assert (self.root / value).is_file(), f"no such file: {value}"

    def _check_python(self, arguments: list[str]) -> None:
        if arguments[:2] == ["-m", "pip"]:
            self._check_pip(arguments[2:])
        elif arguments[:2] == ["-m", "venv"]:
            _check_one_argument([each for each in arguments[2:] if each != _SEE_SYSTEM])
        elif arguments[:2] == ["-m", "pytest"]:
            for path in arguments[2:]:
                assert path.startswith("-") or (self.root / path).exists(), f"no such file: {path}"
        else:
            script = self.root / arguments[0]
            assert script.is_file(), f"no such file: {arguments[0]}"
            compile(script.read_text(encoding="utf-8"), arguments[0], "exec")


def _segments(line: str) -> list[list[str]]:
    """The programs of a pipeline with their arguments; assignments and redirections left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    segments: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word == "|":
            segments.append([])
        elif word == ">":
            next(words)
        elif segments[-1] or not _ASSIGNMENT.fullmatch(word):
            segments[-1].append(word)
    assert all(segments), f"no command in: {line}"
    return segments


def _check_git(arguments: list[str]) -> None:
    assert [arguments[0], len(arguments)] == ["clone", 2], f"not known: git {arguments}"
    assert re.fullmatch(r"https://\S+/divprune-edge(\.git)?", arguments[1]), arguments[1]


def _check_lmms_eval(arguments: list[str]) -> None:
    """It is not installed here; tests/runtime/eval/test_lmms.py runs it where it is."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert options["--model"] == "divprune", arguments
    given = dict(item.split("=") for item in options["--model_args"].split(","))
    assert given.keys() <= {"engine_dir", "keep", "backend", "backend_device", "threads"}, given
    assert _ENGINE_DIR.fullmatch(given["engine_dir"]), given


def _check_apt(arguments: list[str]) -> None:
    assert arguments[:2] == ["apt", "install"], f"not known: sudo {arguments}"
    known = {"nvidia-jetpack", "python3-venv"}
    assert set(arguments[2:]) <= known, f"not known: {arguments[2:]}"


def _check_one_argument(arguments: list[str]) -> None:
    assert len(arguments) == 1, arguments
