"""Outcomes: one row per judged answer, the rates with intervals that derive from them, and how two of them compare."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
