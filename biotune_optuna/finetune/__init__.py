"""Fine-tuning: a recipe trained on one model and one set of images."""
