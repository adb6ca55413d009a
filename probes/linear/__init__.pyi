from .estimators import LdaProbe as LdaProbe
from .estimators import LinearProbe as LinearProbe
from .estimators import LogisticProbe as LogisticProbe
from .estimators import MeanDifferenceProbe as MeanDifferenceProbe
from .estimators import PersonaProbe as PersonaProbe
from .estimators import RidgeProbe as RidgeProbe
