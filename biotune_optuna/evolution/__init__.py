"""The evolutionary search: pure functions, no Optuna, no clock, no global random state.

Begin with `strategy`: `plan` says which slots a generation has, `propose` which genome belongs into
one, `survivors` who lives on. An offspring is made in one of two ways.

The default preset::

    strategy._default_offspring
      breeding.Landscape           what a model of all evaluated genomes (surrogate) says of them
      breeding.best_candidate      of a few offspring, the one that the model likes best
        breeding.structured_child  parents drawn by rank, then random moves of
          moves.random_move        shift, tilt, boundary, flip, single, swap

The paper's strategy (``preset="paper"``)::

    strategy._paper_offspring      the operators of paper: cross, mutate, adopt, one after another

Both share the records of `generation`, the switches of `settings`, and the search space as `domain`
describes it. `informed` lists the recipes that the default preset begins with. docs/method.md
states all of it in formulas, step by step; the code cites its steps.
"""
