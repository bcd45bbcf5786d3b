"""`python -m bench` is `bench`."""

from bench.cli import main

if __name__ == "__main__":  # child processes of nnU-Net import this again
    main()
