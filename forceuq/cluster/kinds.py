"""What is known of single kinds of data set, backbone and method, to ask a cluster for less than the safe maximum.

It stands here rather than in the kinds' own modules because those belong to the digests that make jobs run again.
A kind that is not named here works: it gets the most that its options allow.
"""

from dataclasses import dataclass
from typing import Any

from forceuq.cluster.requests import Speed
from forceuq.methods import needs_structures


@dataclass(frozen=True)
class Effort:
    """What a fit takes.

    Args:
        epochs: of training, at most; 0: none.
        fits_on: device of the fit, cpu or cuda.
        predicts_on: device of the predictions.
        passes: forward passes of a prediction.
        memory_gb: held beside the data, GiB.
        devices: GPUs that a fit is shared by, where it is on cuda.
        features_gib: node features that a fit holds, GiB; None: the usual.
    """

    epochs: int
    fits_on: str = "cpu"
    predicts_on: str = "cpu"
    passes: int = 1
    memory_gb: float = 0.0
    devices: int = 1
    features_gib: float | None = None


def share_of_part(kind: str, part: str, options: Any) -> float:
    """Return the share of a data set's atoms in one of its parts, at most."""
    if kind == "mptrj":
        train, validation, test = options.fractions
        # How much of a part is in which stratum is not known before the data.
        return float({"train": train, "val": validation}.get(part, test))
    if kind == "rmd17":
        # Each molecule has as many training as test frames; the largest has less than twice the mean's atoms.
        half = min(1.0, 2 * 0.5 / len(options.molecules))
        validation = options.validation_fraction
        return float(half * {"train": 1 - validation, "val": validation}.get(part.rpartition("-")[2], 1.0))
    return 1.0


def speed_of_backbone(kind: str, options: Any) -> Speed:
    """Return atoms a second; Orb-v3's where nothing else is known."""
    if kind == "orb" and options.architecture == "forceuq-small":
        return Speed(core=1_700.0, gpu=76_000.0)
    return Speed()


def effort_of_method(kind: str, options: Any, started: bool) -> Effort:
    """Return what a fit takes, from its options: ``max_epochs``, ``device``, ``devices``, ``passes``,
    ``max_memory_gb``, ``features_gib``.

    Args:
        kind: of method.
        options: its ``Options``.
        started: whether it starts from another fit.
    """
    device = getattr(options, "device", "cpu")
    effort = Effort(
        epochs=getattr(options, "max_epochs", 0),
        fits_on=device,
        # Methods on cached features predict on the CPU.
        predicts_on=device if needs_structures(kind) else "cpu",
        passes=getattr(options, "passes", 1),
        memory_gb=getattr(options, "max_memory_gb", 0.0),
        devices=getattr(options, "devices", 1),
        features_gib=getattr(options, "features_gib", None),
    )
    if kind == "gp":
        return Effort(0, device, device, memory_gb=effort.memory_gb)
    if kind == "bll" and (started or options.projection == "pretrained"):
        return Effort(0)
    if kind == "swag":
        epochs = options.swag_epochs + (0 if started else options.max_epochs)
        return Effort(epochs, device, passes=options.samples, features_gib=effort.features_gib)
    return effort
