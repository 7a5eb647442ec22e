"""TensorRT plugin for the greedy selection loop."""

from divprune.plugins.registration import Realisation, plugin_realisation, register_plugin

__all__ = ["Realisation", "plugin_realisation", "register_plugin"]
