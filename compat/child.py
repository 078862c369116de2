"""The main module of children of multiprocessing's spawn and forkserver: the program, swapped."""

from compat.program.main import execute_in_child

if __name__ == "__mp_main__":
    execute_in_child(globals())
