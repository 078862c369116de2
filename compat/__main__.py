"""`python -m compat script.py args` and `python -m compat -m module args` run an unchanged program."""

from compat.program.main import main

if __name__ == "__main__":  # multiprocessing's children import this module under another name
    main()
