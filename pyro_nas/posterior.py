"""Reading structure."""
import torch
def hard_choices(gamma, restriction):
    if restriction.startswith("simplex"):
        return torch.nn.functional.one_hot(gamma.argmax(-1), gamma.shape[-1]).to(gamma.dtype)
    return (gamma > 0.5).to(gamma.dtype)
