from .batch import LatentBatch as LatentBatch
from .batch import LatentColumn as LatentColumn
from .encoding import encode_into as encode_into
from .store import LatentStore as LatentStore
