"""Ways to fine-tune, one file a paper: BioTune's rivals."""
