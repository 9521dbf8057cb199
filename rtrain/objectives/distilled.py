"""Learning from a teacher's logits beside the labels (Hinton et al., arXiv:1503.02531).

Shape legend: B rows.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rtrain.errors import ConfigError
from rtrain.objectives.pointwise import Pointwise


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How much labels count beside a teacher's logits, which `schema.teacher` names the column of."""

    alpha: float = 0.5
    """Factor on the loss against the labels; 1 - alpha on that against the teacher."""
    temperature: float = 2.0
    """Divides both logits before their probabilities are compared, so that what is close to 0 or 1 still differs."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"model.distillation.alpha: must be in [0, 1], got {self.alpha}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"model.distillation.temperature: must be positive and finite, got {self.temperature}")


@dataclass(frozen=True)
class Distilled(Pointwise):
    """alpha * H(label, s) + (1 - alpha) * T**2 * H(sigmoid(teacher / T), s / T) of logits s; H is the cross-entropy.

    T**2 keeps the teacher's gradients as large as the labels', whatever T. A row that has only one of both counts by it
    alone, with factor 1.
    """

    taught: ClassVar[bool] = True

    by: Distillation = Distillation()

    def row_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """float32 [B], in nats. `target`: [B, 2], label and teacher's logit, nan where a row does not have it."""
        label, teacher = target.unbind(1)
        labelled, taught = label == label, teacher == teacher
        hot = self.by.temperature
        of_label = self.each(logits, label.nan_to_num()).where(labelled, 0.0)
        soft = (teacher.nan_to_num() / hot).sigmoid()
        of_teacher = hot**2 * binary_cross_entropy_with_logits(logits / hot, soft, reduction="none").where(taught, 0.0)
        both = labelled & taught
        return (self.by.alpha * of_label + (1 - self.by.alpha) * of_teacher).where(both, of_label + of_teacher)
