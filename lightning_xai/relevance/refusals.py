"""Messages about networks that cannot be explained."""

from __future__ import annotations

UNREACHED = (
    "the model's input does not reach its score: an integer cast, an argmax, .detach(), copy.copy or numpy lies "
    "between them, so there is no relevance to propagate."
)
UNDIFFERENTIABLE = (
    "the model calls an operator that torch cannot differentiate, e.g. of a quantised module, through which no "
    "relevance passes; explain the module as it was before, or by perturbation."
)
CONSTANT = " Statistics count as constants unless they are given ('statistic', rules.Gradient()): "
CHECKPOINTED = (
    "the model recomputes activations in the backward pass (torch.utils.checkpoint), where no rule sees them; turn "
    "gradient checkpointing off while explaining."
)
DIFFERENTIATES = (
    "differentiates in its forward (torch.autograd.grad or backward), where it would get relevance for a gradient; use "
    "a gradient method, e.g. Saliency or IntegratedGradients."
)
TRANSFORMS = (
    "calls a transform of torch.func (grad, vjp, jacrev, vmap) in its forward, inside which no rule is seen; use a "
    "gradient method, e.g. Saliency or IntegratedGradients."
)
COMPLEX = (
    "changes complex numbers, which have no sign for a rule to keep; compute with absolute values or with real and "
    "imaginary part, or give it rules.Gradient()."
)
INFERENCE = "calls torch.inference_mode() in its forward, through which no relevance passes; use torch.no_grad() there."
NO_MULTIPLE = (
    "but it does not multiply by its input, so it can stand only where the model's input arrives, changed by reshapes "
    "and single-number operations at most, and no norm, product or sum of several; use another rule there, e.g. "
    "EpsilonPlus() in place of EpsilonPlusFlat() or DeepTaylor(), or the pattern 'first'."
)
TOO_LATE = (
    "of which only the end of the pass tells whether it is 'last', when it is too late for run(call): implement "
    "linear(step), or name the module instead."
)
NEEDS_WEIGHTS = (
    "asks for attention weights (need_weights=True) and so makes it of its parts: call it with need_weights=False, or "
    "give rules to 'product' and 'softmax'."
)
NOTHING_BETWEEN = "to the rules, so that there is no relevance between the two: explain what they give together"
