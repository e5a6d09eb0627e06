"""`python -m sparsestore` is the command `sparsestore`."""

from sparsestore.cli import main

if __name__ == "__main__":
    main()
