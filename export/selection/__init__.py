"""Token selectors by name. How to add one is in the README beside this file.

Packages add theirs through the entry point group ``divprune.selectors``: the name of the entry
is the selector's, what it points to is called with a ``Setting``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from divprune.export.selection.in_llm import InLLMSelector
from divprune.export.selection.protocol import PluginSelector, Selector, Setting
from divprune.runtime.errors import OptionError, UnsupportedError

__all__ = [
    "ENTRY_POINTS",
    "IN_LLM_FLAGS",
    "IN_LLM_SELECTORS",
    "SELECTORS",
    "InLLMSelector",
    "PluginSelector",
    "Selector",
    "Setting",
    "get_in_llm_selector",
    "get_selector",
    "selector_names",
]

ENTRY_POINTS = "divprune.selectors"


def _load(module: str, name: str) -> Callable[[Setting], Selector]:
    """A loader that imports the selector's module only when it is called."""

    def load(setting: Setting) -> Selector:
        selector: Selector = getattr(import_module(f"{__name__}.{module}"), name)(setting)
        return selector

    return load


SELECTORS: dict[str, Callable[[Setting], Selector]] = {
    "divprune": _load("divprune", "DivPrune"),
    "scope": _load("scope", "Scope"),
    "prumerge": _load("prumerge", "PruMerge"),
    "visionzip": _load("visionzip", "VisionZip"),
    "random": _load("random", "Random"),
    "uniform": _load("uniform", "Uniform"),
    "downsample": _load("downsample", "Downsample"),
}


def _load_in_llm(module: str, name: str) -> Callable[..., InLLMSelector]:
    def load(**flags: float | None) -> InLLMSelector:
        selector: InLLMSelector = getattr(import_module(f"{__name__}.{module}"), name)(**flags)
        return selector

    return load


IN_LLM_SELECTORS: dict[str, Callable[..., InLLMSelector]] = {
    "greedyprune": _load_in_llm("greedyprune", "GreedyPrune"),
    "fastv": _load_in_llm("fastv", "FastV"),
    "vtw": _load_in_llm("vtw", "VTW"),
}

IN_LLM_FLAGS: dict[str, tuple[str, ...]] = {
    "greedyprune": ("keep", "layer", "tau"),
    "fastv": ("keep", "layer"),
    "vtw": ("layer",),
}
"""Which of ``--keep``, ``--layer`` and ``--tau`` each of them takes."""


def selector_names() -> tuple[str, ...]:
    """All names that ``--selector`` takes: this package's, then those of installed packages."""
    return (*SELECTORS, *IN_LLM_SELECTORS, *sorted(_installed()))


def get_in_llm_selector(
    name: str, layer: int | None = None, tau: float | None = None
) -> InLLMSelector:
    """The selector between decoder layers called ``name``; None takes its default."""
    flags = {"layer": layer, "tau": tau}
    taken = {flag: value for flag, value in flags.items() if flag in IN_LLM_FLAGS[name]}
    return IN_LLM_SELECTORS[name](**taken)


def get_selector(name: str, setting: Setting | None = None) -> Selector:
    """The selector called ``name``.

    Raises:
        OptionError: if there is none of that name.
        UnsupportedError: if an installed package offers it and it does not load.
    """
    if name in SELECTORS:
        return SELECTORS[name](setting or Setting())
    installed = _installed()
    if name in installed:
        return _load_installed(installed[name], setting or Setting())
    raise OptionError(
        f"There is no selector {name!r}",
        expected=f"one of {', '.join(selector_names())}",
        found=name,
        fix="pass --selector with one of these names",
    )


def _installed() -> dict[str, EntryPoint]:
    """Entry points by name; a package cannot replace one of ours."""
    taken = {*SELECTORS, *IN_LLM_SELECTORS}
    found = entry_points(group=ENTRY_POINTS)
    return {entry.name: entry for entry in found if entry.name not in taken}


def _load_installed(entry: EntryPoint, setting: Setting) -> Selector:
    package = entry.dist.name if entry.dist is not None else "unknown"
    found: object
    try:
        selector = entry.load()(setting)
    except Exception as error:  # whatever a package does when it is imported
        found = f"{type(error).__name__}: {error}"
    else:
        if isinstance(selector, Selector) and selector.name == entry.name:
            return selector
        found = f"{type(selector).__name__} named {getattr(selector, 'name', None)!r}"
    raise UnsupportedError(
        f"the selector {entry.name!r} of package {package} does not load",
        expected=f"{entry.value} to make a Selector named {entry.name!r}",
        found=found,
        fix=f"pip install --upgrade {package}, or take another --selector",
    )
