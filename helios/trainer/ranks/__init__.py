"""Many ranks: what the trainer does when a run has several processes."""
