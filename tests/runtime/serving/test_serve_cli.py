from __future__ import annotations

import socket
from pathlib import Path

import pytest

from divprune.runtime.cli.serve import main

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    return err


def test_network_without_a_key_is_refused(
    capsys: pytest.CaptureFixture[str], engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIVPRUNE_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org"):
        assert "everyone on the network" in refused(capsys, engine_dir, "--host", host)


def test_taken_port_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "divprune.runtime.backends.load_backend", lambda *_, **__: pytest.fail("loaded")
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "cannot listen" in refused(capsys, engine_dir, "--port", port)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--port", 70000], "--port"),
        (["--host", "203.0.113.1", "--no-api-key"], "cannot listen"),
        (["--max-queue", 0], "--max-queue"),
        (["--max-tokens", -1], "--max-tokens"),
        (["--max-body-mib", 0], "--max-body"),
        (["--timeout", -1], "--timeout"),
        (["--api-key", "short"], "API key"),
        (["--api-key", "with a blank in it"], "API key"),
        (["--api-key-file", "/no/such/file"], "--api-key-file"),
        (["--media-dir", "/no/such/folder"], "--media-dir"),
        (["--keep", 0.9], "--keep"),
        (["--port", 0, "--encode-ahead", "--max-cache-mib", 0], "--encode-ahead has nowhere"),
        (["--port", 0, "--encode-ahead", "--residency", "sequential"], "--encode-ahead cannot"),
    ],
)
def test_option_that_cannot_be_used_is_refused(
    capsys: pytest.CaptureFixture[str], engine_dir: Path, arguments: list[object], message: str
) -> None:
    assert message in refused(capsys, engine_dir, *arguments)


def test_missing_directory_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "engine directory" in refused(capsys, tmp_path / "none")


def test_empty_key_file_is_refused(
    capsys: pytest.CaptureFixture[str], engine_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# nothing yet\n")
    assert "holds no key" in refused(capsys, engine_dir, "--api-key-file", file)
