"""`python -m compat script.py args`, `python -m compat -m module args`: run unchanged programs."""

from compat.program.main import main

if __name__ == "__main__":  # multiprocessing's children import this module under another name
    main()
