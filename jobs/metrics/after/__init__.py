"""The built-in maps of embeddings after training: fitted on rows of data.train, applied to whatever is judged."""
