"""What every part of the orchestrator rests on: terminals, threads, processes, temporary folders, secrets."""
