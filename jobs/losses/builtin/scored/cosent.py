"""CoSENT, a ranking of scored pairs by their cosines, Su 2022 (kexue 8847): log(1 + sum over two pairs, the first of a
higher score, of exp((cosine of the second - cosine of the first) / temperature)), over the pairs of all ranks."""

from __future__ import annotations

from torch import Tensor

from jobs.losses.builtin.scored._ranked import check_scores, ranking


def cosent(queries: Tensor, keys: Tensor, scores: Tensor, temperature: float | Tensor) -> Tensor:
    """Compute the ranking of pairs: queries, keys [B, D], scores [B]. 0 where all scores are equal."""
    return ranking((queries * keys).sum(1), scores, temperature)


cosent.check_scores = check_scores  # type: ignore[attr-defined]
