"""Which rows of a data set to drop: scores per row, the rule that drops, what the split is worth, whole files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
