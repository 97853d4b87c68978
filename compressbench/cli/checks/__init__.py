"""What `compressbench doctor` looks at: each module is one check, run in a process of its own."""
