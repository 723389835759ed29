"""A worker: a keeper that never dies, an agent that talks to the master, executors that run attempts."""
