"""Losses of pairs that people have scored or labelled: `data.scores` names the column."""
