from .connection import Connection as Connection
from .endpoint import Endpoint as Endpoint
from .ledger import Ledger as Ledger
