"""The built-in metrics: one module each. Whether a metric is decisive, or only at the end, is said by evaluate.py.

One of the user's own is a function of embeddings, which asks by name for what it needs: references [R, D],
reference_labels [R], queries [Q, D], query_labels [Q] of images; left, right [n, D], scores [n] of sentences; settings,
the job's `evaluate`; and its options. It returns a number; or its outcome for each row, whose mean is the metric; or
what `jobs.metrics.by_row` makes of columns. Of the last two is kept what they say row by row.
"""
