"""What starts workers, one file each: this machine, Ray, Slurm; `base` is the interface."""
