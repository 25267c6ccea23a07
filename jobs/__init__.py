"""Training: what one job is and how it is carried out, on one process or many. Knows nothing of the orchestrator."""
