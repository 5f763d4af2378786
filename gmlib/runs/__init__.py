"""Storing runs and reading them back.

A run makes one set and trains networks on it. Its files are in one folder. The modules of this room, each
importing only from those above it:

`layout`
    Where the files of a run are, and how they are written, read and checked.
`locks`
    One process at a time in the folder of a run.
`provenance`
    The versions, commit and device that a run was made with.
`estimates`
    How long a run will take and how much memory, from a few of its steps: `gmlib.estimate`.
`jobs`
    The description of a run. Everything is checked here and nothing is computed.
`store`
    Do a run, or read back what is stored: `store.run`, `store.sweep`, `store.whole_data`, `store.cached_table`.
`cells`
    The cells of the paper's tables in a file, workflow/cells.csv.
`shipped`
    The condensed sets under results/: `gmlib.load_condensed` and everything stored with a set.
`readback`
    Stored results as tables, one row per trained network, set or measurement.
`tasks`
    Do cells in one process, the most informative first: the command `gmlib run`.
`overview`
    How each folder of results was made, and the table of it in results/README.md.
"""
