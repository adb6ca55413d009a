from .contrast import Contrast as Contrast
from .contrast import GroupContrast as GroupContrast
from .stats import GroupStats as GroupStats
from .stats import group_stats as group_stats
