"""Metrics of what a search finds: the numbers of trec_eval, query by query."""
