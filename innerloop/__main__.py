"""`python -m innerloop`: the command line."""

from innerloop.lab.cli import main

if __name__ == "__main__":
    main()
