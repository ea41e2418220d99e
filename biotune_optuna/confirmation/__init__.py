"""Which recipe really is best: fresh seeds, rivals, and one look at the test set."""
