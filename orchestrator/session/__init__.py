"""One driver's work on a run: what is handed out, on which cluster, and how it ends."""
