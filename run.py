"""python run.py recipe=...: the same as the console script `compressbench`."""

from compressbench.cli.main import main

if __name__ == "__main__":
    main()
