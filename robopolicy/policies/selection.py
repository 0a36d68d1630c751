"""Which of N candidates to execute, from the scores of E heads. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robopolicy.spec import Array, did_you_mean

RULES = ("lcb", "softmax", "argmax", "random", "worst", "medoid")
OF_HEADS = ("mean", "min")


@dataclass(frozen=True)
class Selection:
    """How a candidate is chosen.

    rule: "lcb" takes the largest mean - lcb * standard deviation over heads, and keeps candidate 0 unless the gain over it,
            averaged over heads, exceeds `margin` standard deviations of that gain and `min_gain`, in the critic's units.
            Heads that share an encoder and data agree on their common errors, which `margin` cannot see: `min_gain` is for
            these.
        "softmax" draws by value / temperature; with scale_free the values are standardised over the candidates first, so
            one temperature suits every critic.
        "argmax" takes the largest value, without a gate (V-GPS at temperature 0).
        Controls for experiments: "random" draws evenly, "worst" takes the smallest value, "medoid" the chunk that is closest
            to all others, without a look at the values.
    heads: what "softmax", "argmax" and "worst" take for a value: the "mean" over heads, or the "min", as V-GPS does.
    """

    rule: str = "lcb"
    lcb: float = 1.0
    margin: float = 1.0
    min_gain: float = 0.0
    temperature: float = 1.0
    scale_free: bool = True
    heads: str = "mean"

    def __post_init__(self) -> None:
        for name, known in (("rule", RULES), ("heads", OF_HEADS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}; {self._hint(name, known)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive; rule=argmax is its limit at 0")
        for name in ("lcb", "margin", "min_gain"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    def _hint(self, name: str, known: tuple[str, ...]) -> str:
        return did_you_mean(str(getattr(self, name)), known)


def select(
    scores_EBN: Array,
    selection: Selection,
    rng: np.random.Generator,
    allowed: Array | None = None,
    chunks: Array | None = None,
) -> Array:
    """Index [B] of the chosen candidate, int64. Equal scores leave candidate 0 ("lcb", "argmax") or draw evenly.

    Args:
        scores_EBN: larger is better.
        allowed: bool [B, N], at least one a row: candidates that may be chosen; None = all. Where candidate 0 is not among
            them, the first that is takes its place.
        chunks: [B, N, h, A], for "medoid".

    Raises:
        ValueError: "medoid" without chunks.
    """
    batch, num = scores_EBN.shape[1:]
    allowed = np.ones((batch, num), bool) if allowed is None else allowed
    values = scores_EBN.mean(0) if selection.heads == "mean" or selection.rule == "lcb" else scores_EBN.min(0)

    def largest(x: Array) -> Array:
        return np.where(allowed, x, -np.inf).argmax(1)

    if selection.rule == "random":
        return largest(rng.random((batch, num)))
    if selection.rule == "medoid":
        if chunks is None:
            raise ValueError("rule='medoid' compares chunks: give them")
        return largest(-chunk_distances(chunks).sum(2))
    if selection.rule == "worst":
        return largest(-values)
    if selection.rule == "argmax":
        return largest(values)
    if selection.rule == "softmax":
        spread = values.std(1, keepdims=True)
        free = (values - values.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
        logits = (free if selection.scale_free else values) / selection.temperature
        return largest(logits + rng.gumbel(size=logits.shape))
    best = largest(values - selection.lcb * scores_EBN.std(0))
    kept = allowed.argmax(1)
    picked = np.take_along_axis(scores_EBN, np.stack([best, kept], 1)[None], 2)  # [E, B, 2]
    gain = picked[..., 0] - picked[..., 1]
    return np.where(gain.mean(0) > np.maximum(selection.margin * gain.std(0), selection.min_gain), best, kept)


def chunk_distances(chunks_BNHA: Array) -> Array:
    """Distances [B, N, N] between the chunks of a row, each action entry in units of its spread over all of them."""
    scale = chunks_BNHA.std((0, 1, 2))
    flat = (chunks_BNHA / np.where(scale > 0, scale, 1.0)).reshape(*chunks_BNHA.shape[:2], -1).astype(np.float64)
    return np.linalg.norm(flat[:, :, None] - flat[:, None], axis=-1)
