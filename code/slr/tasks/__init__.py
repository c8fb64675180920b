"""The systems: each file binds one data set, model, loss and metric as a `task.Task`."""
