/* Poller: what it watches for, and from epoll's events to the tasks that wait.
 *
 * Theory of operation. `Poller._on_ready` asks epoll for a batch and calls `_on_readable` and `_on_writable` of each
 * connection, whatever class that has. A connection's own `_on_readable` runs the waiting task's wake-up at once, in
 * the task's context (net/waiter.py). It gives it a future that is done: the C task takes the result of an exact
 * asyncio.Future without a call (task_wakeup, Modules/_asynciomodule.c).
 */
#include "speedups.h"
#include <sys/epoll.h>

#define BATCH 128 /* as in net/poller.py */
#define READABLE (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)
#define WRITABLE (EPOLLOUT | EPOLLHUP | EPOLLERR)

/* Connection._on_readable() and _spun(), where Python calls them. report() and spun() do without. */
static PyObject *call_python(State *Py_UNUSED(state), PyObject *pure, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *names) {
    return call_pure(pure, args, nargs, names);
}

/* Run the waiting task's wake-up in its context. An error is the callback's: KeyboardInterrupt, say. */
static int wake(Waiter *waiter, PyObject *awake) {
    PyObject *wakeup = Py_NewRef(waiter->wakeup), *context = Py_NewRef(waiter->context), *type, *value, *traceback;
    int failure = PyContext_Enter(context);
    if (!failure && !failed(PyObject_CallOneArg(wakeup, awake))) {
        failure = PyContext_Exit(context);
    } else if (!failure) {
        failure = -1;
        PyErr_Fetch(&type, &value, &traceback);
        PyContext_Exit(context);
        PyErr_Restore(type, value, traceback);
    }
    Py_DECREF(context);
    Py_DECREF(wakeup);
    return failure;
}

/* Call one connection's methods for the events that it has got. Mostly a task waits to receive: it is woken at once,
 * unless the connection's class has its own `_on_readable()`. */
static int report(State *state, PyObject *connections, PyObject *awake, struct epoll_event *event) {
    PyObject *fd = PyLong_FromLong(event->data.fd);
    PyObject *connection = fd == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(connections, fd));
    Py_XDECREF(fd);
    if (connection == NULL)
        return PyErr_Occurred() ? -1 : 0; /* closed by a handler that ran earlier in this batch */
    int failure = 0, usual = is_connection(state, connection) && state->wakes_readers;
    Waiter *waiter = usual && is_waiter(((Connection *)connection)->reading)
                         ? (Waiter *)((Connection *)connection)->reading : NULL;
    if (event->events & READABLE)
        failure = waiter != NULL && is_busy(waiter) && waiter->context != NULL
                      ? wake(waiter, awake) : failed(PyObject_CallMethodNoArgs(connection, N(_on_readable)));
    if (!failure && event->events & WRITABLE)
        failure = failed(PyObject_CallMethodNoArgs(connection, N(_on_writable)));
    Py_DECREF(connection);
    return failure ? -1 : 0;
}

/* Poller._on_ready() */
static PyObject *on_ready(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    if (nargs != 1 || names != NULL)
        return call_pure(pure, args, nargs, names);
    PyObject *number = PyObject_GetAttr(args[0], N(_epoll_fd)), *connections = NULL, *awake = NULL;
    int epoll = number == NULL ? -1 : (int)PyLong_AsLong(number), failure = 0;
    Py_XDECREF(number);
    if (!PyErr_Occurred())
        connections = PyObject_GetAttr(args[0], N(_connections));
    if (connections != NULL)
        awake = PyObject_GetAttr(args[0], N(awake));
    if (awake == NULL) {
        Py_XDECREF(connections);
        return NULL;
    }
    struct epoll_event events[BATCH];
    int count = epoll_wait(epoll, events, BATCH, 0);
    if (count < 0 && errno != EINTR) {
        PyErr_SetFromErrno(PyExc_OSError);
        failure = 1;
    }
    for (int i = 0; i < count && !failure; i++)
        failure = report(state, connections, awake, &events[i]);
    Py_DECREF(awake);
    Py_DECREF(connections);
    return failure ? NULL : Py_NewRef(Py_None);
}

/* As Connection._set_events(): 0, or -1 with an error set. */
int change_events(State *state, Connection *self, unsigned events) {
    if (events == self->events)
        return 0;
    PyObject *numbers = Py_BuildValue("(iII)", self->fd, self->events, events);
    if (numbers == NULL)
        return -1;
    PyObject *args[] = {self->poller, (PyObject *)self, PyTuple_GET_ITEM(numbers, 0), PyTuple_GET_ITEM(numbers, 1),
                        PyTuple_GET_ITEM(numbers, 2)};
    int failure = failed(PyObject_VectorcallMethod(N(watch), args, 5, NULL));
    Py_DECREF(numbers);
    if (failure)
        return -1;
    self->events = events;
    return 0;
}

static PyObject *set_watching(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names,
                              int on) {
    if (nargs != 1 || names != NULL || !is_connection(state, args[0]) || ((Connection *)args[0])->poller == NULL)
        return call_pure(pure, args, nargs, names);
    Connection *self = (Connection *)args[0];
    unsigned events = on ? self->events | EPOLLIN : self->events & ~(unsigned)EPOLLIN;
    if ((self->watching == Py_True) != on && events != self->events) { /* as Connection._set_events() */
        PyObject *numbers = Py_BuildValue("(iII)", self->fd, self->events, events);
        PyObject *call[] = {self->poller, args[0], NULL, NULL, NULL};
        for (int i = 0; numbers != NULL && i < 3; i++)
            call[2 + i] = PyTuple_GET_ITEM(numbers, i);
        int failure = numbers == NULL || failed(PyObject_VectorcallMethod(N(watch), call, 5, NULL));
        Py_XDECREF(numbers);
        if (failure)
            return NULL;
        self->events = events;
    }
    Py_XSETREF(self->watching, Py_NewRef(on ? Py_True : Py_False));
    Py_RETURN_NONE;
}

/* Connection._watch() */
static PyObject *watch(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    return set_watching(state, pure, args, nargs, names, 1);
}

/* Connection._unwatch() */
static PyObject *unwatch(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    return set_watching(state, pure, args, nargs, names, 0);
}

const Function poller_functions[] = {
    {"Connection._on_readable", call_python},
    {"Connection._spun", call_python},
    {"Connection._unwatch", unwatch},
    {"Connection._watch", watch},
    {"Poller._on_ready", on_ready},
    {0},
};
