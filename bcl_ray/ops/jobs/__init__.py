"""Send a job to a cluster, and follow it.

package   the job's working directory
checks    what this machine can check before anything is sent
request   the job and its record
client    the cluster's Jobs API
follow    the job's log, over connections that may break
own_job   how a job ends itself as stopped, from inside
"""
