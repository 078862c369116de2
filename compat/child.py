"""What multiprocessing's spawn and forkserver execute as the main module of a child: the program, swapped."""

from compat.program.main import execute_in_child

if __name__ == "__mp_main__":
    execute_in_child(globals())
