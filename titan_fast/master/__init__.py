"""The shell around the scheduler: sockets, clocks, files. It decides nothing; `titan_fast.scheduler` does."""
