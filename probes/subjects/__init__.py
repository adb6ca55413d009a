"""Subjects that are reached over the network: an OpenAI-compatible endpoint, how it is called, what it answered."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
