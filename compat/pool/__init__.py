"""ThreadPool: the executor that threaded handlers run on."""
