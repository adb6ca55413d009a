"""Linear probes: what can be read off activations by one direction, and how sure one may be of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
