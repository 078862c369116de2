# mypy: ignore-errors
"""What a program can see of how it was started, in itself and in the children of multiprocessing."""

import multiprocessing
import pickle
import socketserver
import sys
import threading


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return self.x == other.x


def work(results, point):
    results.put((socketserver.__name__, __name__, point.x, sys.argv[1:], issubclass(Point, object)))


def pickle_late():
    threading.main_thread().join()
    print(pickle.loads(pickle.dumps(Point(7))) == Point(7))


if __name__ == "__main__":
    print(__name__, socketserver.__name__, __package__ or None, sys.argv[1:])
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        results = context.SimpleQueue()
        process = context.Process(target=work, args=(results, Point(method)))
        process.start()
        print(results.get())
        process.join()
        print(process.exitcode)
    threading.Thread(target=pickle_late).start()
