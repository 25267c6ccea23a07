"""Which way a metric of another trainer is better, as far as its name says."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobs.config.after_sections import without_dims
from orchestrator.statistics import Mode
from orchestrator.sweep.model.metric import LOWER_IS_BETTER

LOWER = frozenset((
    "loss", "losses", "logloss", "error", "errors", "err", "mse", "rmse", "mae", "mape", "smape", "msle",
    "rmsle", "perplexity", "ppl", "nll", "bpb", "bpc", "bpd", "wer", "cer", "fid", "kid", "lpips", "ece", "eer",
    "brier", "deviance", "aic", "bic", "regret", "crossentropy", "xent", "time", "times", "walltime", "runtime",
    "latency", "duration", "seconds", "memory", "vram", "cost", "drop", "gap", "degradation",
))  # fmt: skip
"""Words for what is lost or spent."""

HIGHER = frozenset((
    "accuracy", "accuracies", "acc", "f1", "fscore", "auc", "auroc", "auprc", "ap", "map", "miou", "iou",
    "dice", "jaccard", "measure", "mrr", "ndcg", "dcg", "recall", "precision", "hits", "sensitivity", "specificity",
    "spearman", "pearson", "kendall", "correlation", "corr", "r2", "bleu", "rouge", "meteor", "chrf", "cider",
    "ssim", "psnr", "mcc", "kappa", "nmi", "ari", "silhouette", "reward", "success", "likelihood",
    "loglikelihood", "elbo", "throughput", "speedup",
))  # fmt: skip
"""Words for what is right or won."""

WEAK = frozenset(("score", "scores"))
"""Higher is better, unless another word says what is scored: `fid_score`."""

TURNED = frozenset(("negative", "negated", "minus", "inverse", "inv"))
"""Of what follows these no more is known: a negative accuracy may be that of negatives."""

SECONDS = frozenset(("second", "seconds", "sec", "minute", "hour"))


def usual(metric: str) -> Mode | None:
    """Return the better direction of a metric by the words of its name: `val_loss`, `nDCG@10`. None where no word is
    known, or where they say both."""
    if without_dims(metric) in LOWER_IS_BETTER:
        return "min"
    if (less := re.match(r"\s*1\s*-\s*(.+)", metric)) is not None:
        return _other(usual(less[1]))
    words = _words(metric)
    if words[:1] == ["neg"] or words[:2] == ["negative", "log"]:  # scikit-learn's, and the likelihood's
        return _other(_said(words[1:]))
    return None if TURNED & set(words) else _said(words)


def _said(words: Sequence[str]) -> Mode | None:
    if "per" in words:
        at = words.index("per")
        rate: Mode | None = "max" if SECONDS & set(words[at + 1 : at + 2]) else None
        return _said(words[:at]) or rate
    known = set(words)
    lower = bool(known & LOWER) or {"cross", "entropy"} <= known
    higher = bool(known & HIGHER) or (bool(known & WEAK) and not lower)
    return None if lower == higher else "min" if lower else "max"


def _other(mode: Mode | None) -> Mode | None:
    return None if mode is None else "min" if mode == "max" else "max"


def _words(name: str) -> list[str]:
    """Split a name into its words, without capitals: those that stand together in capitals of their own (`valLoss`) and
    a number behind one (`ndcg10`) too, unless the whole is a word that is known (`mAP`, `f1`)."""
    words = []
    for whole in re.findall(r"[^\W_]+", name):
        parts = [whole.lower()]
        if parts[0] not in LOWER | HIGHER | WEAK:
            parts = [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\dA-Z_]+", whole)]
        words += parts
    return words
