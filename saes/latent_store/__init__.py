"""Sparse latents of a store of activations on disk: encoded once, written and checked as activations are."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
