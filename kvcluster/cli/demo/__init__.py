"""``kvcluster demo``: the main job on real input, beside what people run now.

`world` has the cities and their readers, `sides` the two programs, `load` what is done to them and counted, `stage` and `acts`
the plot, `screen` the picture while it runs, `report` the words at the end, `show` the order of it all, `command` the command line,
and `resize` the second demo: what adding a node costs under each placement.
"""
