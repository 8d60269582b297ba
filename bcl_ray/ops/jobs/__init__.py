"""Send a job to a cluster, follow it, come back to it.

package   the working directory that it gets
request   what is asked of the cluster, checked before anything is sent
client    the cluster's Jobs API
follow    the job's log, over connections that may break
"""
