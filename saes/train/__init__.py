"""Training sparse autoencoders on activations with sae-lens's trainers: streamed, resumable, several at once."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
