"""Models: what one is here, where its blocks are, and loading it from anywhere."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
