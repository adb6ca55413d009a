"""Activations on disk: safetensors shards, a manifest and a journal, written once and read in bounded memory."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
