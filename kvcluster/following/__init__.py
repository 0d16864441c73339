"""Following the topology of a cluster that is resized under way.

The rooms: `epochs` requests that bring the epoch of their node, `plans` what becomes of a plan whose answers tell of another epoch,
`copying` reads that take a key along to its new owner, `planner` the commands, `follower` what a client knows of its source.

Each answer brings the epoch of its node, and the phase says which owners a command goes to (`kvcluster.phases`). Where an answer
tells of a newer epoch, the plan ends in a `Refetch`, which the shell carries out by reading the source; then the command is made
again, by its recipe, for the planner of that day. So no plan knows how topologies are read, and no shell which commands may be
repeated:

- a read, a set, a delete or a touch is done again before it returns. What a set has written to a node that owns the key no more is
  deleted first;
- a change (add, replace, append, prepend, cas, incr, decr) asks for the epoch in a trip of its own first. Where it was late all the
  same, nobody knows whether it counts, and `OutcomeUnknown` says so;
- a fill is never done again: whoever loaded a value has it, and the next reader loads it for the new owner.
"""
