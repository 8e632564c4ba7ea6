"""Several members in one run: one set of batches, one fold, a checkpoint and a log for each."""
