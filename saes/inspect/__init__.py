"""What a latent means: where it fires, what it writes, what stands near it, what fires with it; cards of all that."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
