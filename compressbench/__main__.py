"""`python -m compressbench`: the same as the console script `compressbench`."""

from compressbench.cli.main import main

if __name__ == "__main__":
    main()
