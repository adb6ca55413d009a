from .bench import Check as Check
from .bench import activations_of as activations_of
from .suite import SAMPLES as SAMPLES
from .suite import self_test as self_test
from .tokens import Segment as Segment
from .tokens import segments as segments
