"""karmactl: the operator's hands. `cli.main` runs it; `table` lists what it can do."""
