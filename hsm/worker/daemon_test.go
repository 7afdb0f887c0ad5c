package worker_test

func daemonMain(string) error { return nil }
