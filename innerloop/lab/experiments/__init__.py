"""One file per runnable experiment: a typed config whose fields are flags of the command line."""
