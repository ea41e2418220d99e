"""Studies: spec, storage, objective, workers and the confirmation of the winner."""
