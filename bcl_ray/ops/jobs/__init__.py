"""Send a job to a cluster, and follow it.

package   the job's working directory
request   the job, checked on this machine before anything is sent
client    the cluster's Jobs API
follow    the job's log, over connections that may break
own_job   how a job ends itself as stopped, from inside
"""
