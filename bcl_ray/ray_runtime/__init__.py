"""Ray: the cluster, the processes of a run, and what ends or restarts them.

connection, access, node_groups, autoscaler    the cluster, its storage and how far it grows
trainer, elastic, failures    Ray Train with our rules for numbers of workers and for restarts
channel, watchdog, stopping   events, and requests to stop or restart
node_metrics     the load of nodes
internals        all private parts of Ray that this project uses
"""
