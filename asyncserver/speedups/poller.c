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

/* Call a wake-up in its context. An error is the callback's: KeyboardInterrupt, say. */
static int wake(PyObject *wakeup, PyObject *context, PyObject *awake) {
    PyObject *type, *value, *traceback;
    if (PyContext_Enter(context))
        return -1;
    int failure = failed(PyObject_CallOneArg(wakeup, awake));
    PyErr_Fetch(&type, &value, &traceback);
    if (PyContext_Exit(context))
        failure = 1;
    if (type != NULL)
        PyErr_Restore(type, value, traceback);
    return failure ? -1 : 0;
}

/* Connection._on_readable() */
static PyObject *on_readable(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    Connection *self = nargs == 1 && names == NULL && is_connection(state, args[0]) ? (Connection *)args[0] : NULL;
    Waiter *waiter = self != NULL && is_waiter(state, self->reading) ? (Waiter *)self->reading : NULL;
    if (waiter == NULL || !is_busy(waiter) || waiter->context == NULL)
        return call_pure(pure, args, nargs, names);
    PyObject *awake = self->poller == NULL ? NULL : PyObject_GetAttr(self->poller, N(awake));
    if (awake == NULL)
        return PyErr_Occurred() ? NULL : call_pure(pure, args, nargs, names);
    PyObject *wakeup = Py_NewRef(waiter->wakeup), *context = Py_NewRef(waiter->context);
    int failure = wake(wakeup, context, awake);
    Py_DECREF(awake);
    Py_DECREF(context);
    Py_DECREF(wakeup);
    return failure ? NULL : Py_NewRef(Py_None);
}

/* Waiter.add_done_callback(callback, context=...), as tasks call it. */
static PyObject *add_done_callback(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs,
                                   PyObject *names) {
    if (nargs != 2 || names == NULL || PyTuple_GET_SIZE(names) != 1 || !is_waiter(state, args[0]) ||
        !PyContext_CheckExact(args[2]))
        return call_pure(pure, args, nargs, names);
    Waiter *self = (Waiter *)args[0];
    Py_XSETREF(self->wakeup, Py_NewRef(args[1]));
    Py_XSETREF(self->context, Py_NewRef(args[2]));
    Py_RETURN_NONE;
}

/* Call one connection's methods for the events that it has got. */
static int report(State *state, PyObject *connections, struct epoll_event *event) {
    PyObject *fd = PyLong_FromLong(event->data.fd);
    PyObject *connection = fd == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(connections, fd));
    Py_XDECREF(fd);
    if (connection == NULL)
        return PyErr_Occurred() ? -1 : 0; /* closed by a handler that ran earlier in this batch */
    int failure = 0;
    if (event->events & READABLE)
        failure = failed(PyObject_CallMethodNoArgs(connection, N(_on_readable)));
    if (!failure && event->events & WRITABLE)
        failure = failed(PyObject_CallMethodNoArgs(connection, N(_on_writable)));
    Py_DECREF(connection);
    return failure ? -1 : 0;
}

/* Poller._on_ready() */
static PyObject *on_ready(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    if (nargs != 1 || names != NULL)
        return call_pure(pure, args, nargs, names);
    PyObject *number = PyObject_GetAttr(args[0], N(_epoll_fd)), *connections = NULL;
    int epoll = number == NULL ? -1 : (int)PyLong_AsLong(number), failure = 0;
    Py_XDECREF(number);
    if (!PyErr_Occurred())
        connections = PyObject_GetAttr(args[0], N(_connections));
    if (connections == NULL)
        return NULL;
    struct epoll_event events[BATCH];
    int count = epoll_wait(epoll, events, BATCH, 0);
    if (count < 0 && errno != EINTR) {
        PyErr_SetFromErrno(PyExc_OSError);
        failure = 1;
    }
    for (int i = 0; i < count && !failure; i++)
        failure = report(state, connections, &events[i]);
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
    if ((self->watching == Py_True) != on &&
        change_events(state, self, on ? self->events | EPOLLIN : self->events & ~(unsigned)EPOLLIN))
        return NULL;
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

/* Connection._spun(): the limit is the Python module's. */
static PyObject *count_spin(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    PyObject *module = PyFunction_Check(pure) ? PyFunction_GetGlobals(pure) : NULL;
    PyObject *limit = module == NULL ? NULL : PyDict_GetItemWithError(module, N(_SPIN_LIMIT));
    if (limit == NULL || nargs != 1 || names != NULL || !is_connection(state, args[0]))
        return PyErr_Occurred() ? NULL : call_pure(pure, args, nargs, names);
    Connection *self = (Connection *)args[0];
    long most = PyLong_AsLong(limit);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    self->spins = self->spins + 1 < most ? self->spins + 1 : 0;
    return PyBool_FromLong(self->spins == 0);
}

const Function poller_functions[] = {
    {"Connection._on_readable", on_readable},
    {"Connection._spun", count_spin},
    {"Connection._unwatch", unwatch},
    {"Connection._watch", watch},
    {"Poller._on_ready", on_ready},
    {"Waiter.add_done_callback", add_done_callback},
    {0},
};
