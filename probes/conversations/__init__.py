"""Conversations: rows of messages on disk, and their tokens with the masks that say which token belongs to what."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
