"""What the nodes of a cluster say about themselves: a table per node with a total.

Run it as: python examples/inspect_stats.py --nodes 127.0.0.1:22122,127.0.0.1:22123
"""

import argparse

from kvcluster.errors import KvclusterError
from kvcluster.stats.report import percent, show
from kvcluster.stats.server import collect, total

parser = argparse.ArgumentParser(description="Show the statistics of memcached nodes.")
parser.add_argument("--nodes", required=True, metavar="HOST:PORT,...", help="addresses, separated by commas")
arguments = parser.parse_args()

# One record per node, asked at the same time; a node that does not answer is a record with its error.
try:
    records = collect(arguments.nodes.split(","), timeout=1.0)
except KvclusterError as error:
    parser.error(str(error))

# Records are plain values: compute with them what you like.
print(f"{total(records).items:,} items, hit rate {percent(total(records).hit_rate)}")
for record in records:
    if record.evictions:
        print(f"{record.address} evicts live items: it wants more than its {record.limit >> 20} MB")

show(records)
