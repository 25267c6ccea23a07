"""InfoNCE with other weights of its negatives: functions of the whole batch, as weights are of similarities."""
