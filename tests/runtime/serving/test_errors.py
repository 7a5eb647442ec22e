from __future__ import annotations

import logging

import pytest

from divprune.runtime.errors import BackendError, EngineDirectoryError, ImageError, NumericalError
from divprune.runtime.serving.errors import ApiError, from_exception

PATH = "/home/somebody/engines/secret-model"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", PATH),
        EngineDirectoryError("a file has changed", found=PATH, fix=f"divprune-export {PATH}"),
        BackendError(f"{PATH} cannot be loaded"),
        NumericalError("a graph produced NaN", found=PATH),
        KeyError(PATH),
    ],
)
def test_what_is_not_the_requests_fault_is_logged_and_told_without_details(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        told = from_exception(error)
    assert told.status == 500
    assert told.headers["x-should-retry"] == "false"
    assert "secret" not in str(told.to_dict())
    assert "secret-model" in caplog.text


def test_error_of_the_request_is_told_without_the_command_that_would_mend_it() -> None:
    error = ImageError("no picture", expected="--keep 0.1", found="text", fix=f"look at {PATH}")
    told = from_exception(error)
    assert (told.status, told.code) == (400, "invalid_image")
    assert told.message == "no picture; expected keep 0.1; found text"


def test_error_for_a_client_passes_as_it_is() -> None:
    error = ApiError(418, "a teapot")
    assert from_exception(error) is error
