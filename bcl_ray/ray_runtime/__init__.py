"""Ray: the cluster, the processes of a run, and what ends or restarts them.

connection, access, node_groups, autoscaler, capacity    the cluster, its storage, how far it grows
                 and what it has room for
trainer, elastic, failures    Ray Train with our rules for numbers of workers and for restarts
channel, watchdog, stopping   events, and requests to stop or restart
cluster_map      a function applied to many items on all nodes
node_metrics     the load of nodes
internals        all private parts of Ray that this project uses
"""
