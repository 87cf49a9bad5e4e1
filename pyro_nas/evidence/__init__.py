"""Evidence: the generalised evidence 𝔏(λ) of a (model, guide) pair, and what its estimate is made of."""

from pyro_nas.evidence.estimator import Evidence, evaluate
from pyro_nas.evidence.terms import Terms

__all__ = ["Evidence", "Terms", "evaluate"]
