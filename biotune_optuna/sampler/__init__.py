"""The evolutionary search as an Optuna sampler: every trial fills a slot of a generation.

Begin with `sampler`: Optuna asks it for a trial's parameters. What the other files do, in the order
in which a trial meets them::

    slots      what a process knows of a study, and which slot and genome the next trial gets
    history      the finished and running trials, folded in one by one as they change
    archive      all evaluated genomes, repeats pooled
    config       seed, settings and space, as they are kept in the study
    codec        Optuna's parameters as numbers in [0, 1], and back
    claims     what a trial says of its slot, and how that is written into the storage
    ranking    which finished genomes are the best, luck taken out

docs/method.md, "Slots, claims and leases", has the protocol.
"""
