"""Devices: every file is valid, and what is wrong is said by name."""

from __future__ import annotations

import pytest

from divprune.configs.device import device_from_dict, list_devices, load_device
from divprune.runtime.errors import OptionError

GOOD = {
    "title": "a board",
    "memory_mib": 8192,
    "shared": True,
    "bandwidth_gb_s": 102,
    "system_mib": 1024,
    "target": "jetpack6",
}


@pytest.mark.parametrize("name", list_devices())
def test_every_device_leaves_a_model_most_of_its_memory(name: str) -> None:
    device = load_device(name)
    total = device.memory_mib << 20
    assert total // 2 < device.available_bytes < total


def test_the_boards_of_the_documentation_are_there() -> None:
    assert {"orin-nano-8gb", "agx-orin-64gb", "agx-thor", "cpu-8gb"} <= set(list_devices())


def test_unknown_board_lists_the_known_ones_and_guesses() -> None:
    with pytest.raises(OptionError) as caught:
        load_device("Orin-Nano-8")
    message = str(caught.value)
    assert all(name in message for name in list_devices())
    assert "--board orin-nano-8gb" in message


@pytest.mark.parametrize(
    "change, field",
    [
        ({"title": ""}, "title"),
        ({"memory_mib": "8 GB"}, "memory_mib"),
        ({"shared": 1}, "shared"),
        ({"bandwidth_gb_s": 0}, "bandwidth_gb_s"),
        ({"system_mib": 9000}, "system_mib"),
        ({"target": "tpu"}, "target"),
        ({"memory": 8}, "memory"),
    ],
)
def test_wrong_or_unknown_field_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(OptionError, match=field):
        device_from_dict("made-up", GOOD | change)


def test_a_file_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        device_from_dict("made-up", ["title"])
