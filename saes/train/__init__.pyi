from .recipe import ARCHITECTURES as ARCHITECTURES
from .recipe import Architecture as Architecture
from .recipe import SAERecipe as SAERecipe
from .record import TrainingRecord as TrainingRecord
from .train import train_sae as train_sae
from .train import train_saes as train_saes
