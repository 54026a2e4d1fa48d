"""`python -m quorumq`: the command line."""

from quorumq.cli.main import main

if __name__ == "__main__":
    main()
