"""Specs as torch modules, and weights in the layouts that are in use."""

from mobilefit.nn.network import Network, build
from mobilefit.nn.weights import copy_weights, load_network, load_weights, save_weights

__all__ = ["Network", "build", "copy_weights", "load_network", "load_weights", "save_weights"]
