"""Latents by group of conversations, and how well each tells two groups apart."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
