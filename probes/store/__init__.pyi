from .batches import Where as Where
from .journal import Shard as Shard
from .shards import Damage as Damage
from .store import ActivationStore as ActivationStore
from .writer import StoreWriter as StoreWriter
