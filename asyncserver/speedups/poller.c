/* Poller: from epoll's events to the tasks that wait.
 *
 * Theory of operation. `Poller._on_ready` asks epoll for a batch and calls `_on_readable` and `_on_writable` of each
 * connection, whatever class that has. A connection's own `_on_readable` runs the waiting task's wake-up at once, in
 * the task's context (net/waiter.py). It gives it a future that is done: the C task takes the result of an exact
 * asyncio.Future without a call (task_wakeup, Modules/_asynciomodule.c).
 */
#include "speedups.h"
#include <errno.h>
#include <sys/epoll.h>

#define BATCH 128 /* net/poller.py */
#define READABLE (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)
#define WRITABLE (EPOLLOUT | EPOLLHUP | EPOLLERR)

/* Call a wake-up in its context. An error is the callback's: KeyboardInterrupt, say. */
static int
wake(PyObject *wakeup, PyObject *context, PyObject *awake)
{
    if (PyContext_Enter(context))
        return -1;
    PyObject *result = PyObject_CallOneArg(wakeup, awake);
    PyObject *raised = result == NULL ? PyErr_GetRaisedException() : NULL;
    int failure = PyContext_Exit(context);
    if (raised != NULL) {
        PyErr_Clear();
        PyErr_SetRaisedException(raised);
    }
    return failed(result) || failure ? -1 : 0;
}

/* Connection._on_readable() */
static PyObject *
on_readable(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    if (nargs != 1 || names != NULL || !is_connection(state, args[0]) ||
        !is_waiter(state, ((Connection *)args[0])->reading))
        return call_pure(pure, args, nargs, names);
    Connection *self = (Connection *)args[0];
    Waiter *waiter = (Waiter *)self->reading;
    if (waiter->wakeup == NULL || waiter->wakeup == Py_None || waiter->context == NULL || self->poller == NULL)
        return call_pure(pure, args, nargs, names);
    PyObject *awake = PyObject_GetAttr(self->poller, state->names[N_AWAKE]);
    if (awake == NULL)
        return NULL;
    PyObject *wakeup = waiter->wakeup, *context = Py_NewRef(waiter->context);
    waiter->wakeup = NULL;
    int failure = wake(wakeup, context, awake);
    Py_DECREF(awake);
    Py_DECREF(context);
    Py_DECREF(wakeup);
    return failure ? NULL : Py_NewRef(Py_None);
}

/* Call one connection's methods for the events that it has got. */
static int
report(State *state, PyObject *connections, struct epoll_event *event)
{
    PyObject *fd = PyLong_FromLong(event->data.fd);
    if (fd == NULL)
        return -1;
    PyObject *connection = Py_XNewRef(PyDict_GetItemWithError(connections, fd));
    Py_DECREF(fd);
    if (connection == NULL)
        return PyErr_Occurred() ? -1 : 0; /* closed by a handler that ran earlier in this batch */
    int failure = 0;
    if (event->events & READABLE)
        failure = failed(PyObject_CallMethodNoArgs(connection, state->names[N_ON_READABLE]));
    if (!failure && event->events & WRITABLE)
        failure = failed(PyObject_CallMethodNoArgs(connection, state->names[N_ON_WRITABLE]));
    Py_DECREF(connection);
    return failure ? -1 : 0;
}

/* Poller._on_ready() */
static PyObject *
on_ready(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    if (nargs != 1 || names != NULL)
        return call_pure(pure, args, nargs, names);
    PyObject *number = PyObject_GetAttr(args[0], state->names[N_EPOLL_FD]);
    int epoll = number == NULL ? -1 : (int)PyLong_AsLong(number);
    Py_XDECREF(number);
    if (epoll == -1 && PyErr_Occurred())
        return NULL;
    PyObject *connections = PyObject_GetAttr(args[0], state->names[N_CONNECTIONS]);
    if (connections == NULL)
        return NULL;
    if (!PyDict_CheckExact(connections)) {
        Py_DECREF(connections);
        return call_pure(pure, args, nargs, names);
    }
    struct epoll_event events[BATCH];
    int count = epoll_wait(epoll, events, BATCH, 0), failure = 0;
    if (count < 0 && errno != EINTR) {
        PyErr_SetFromErrno(PyExc_OSError);
        failure = 1;
    }
    for (int i = 0; i < count && !failure; i++)
        failure = report(state, connections, &events[i]);
    Py_DECREF(connections);
    return failure ? NULL : Py_NewRef(Py_None);
}

/* Connection._spun(): the limit is the Python module's. */
static PyObject *
spun(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    PyObject *limit = PyFunction_Check(pure)
                          ? PyDict_GetItemWithError(PyFunction_GET_GLOBALS(pure), state->names[N_SPIN_LIMIT])
                          : NULL;
    if (limit == NULL || nargs != 1 || names != NULL || !is_connection(state, args[0]))
        return PyErr_Occurred() ? NULL : call_pure(pure, args, nargs, names);
    Connection *self = (Connection *)args[0];
    long most = PyLong_AsLong(limit);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (++self->spins < most)
        Py_RETURN_FALSE;
    self->spins = 0;
    Py_RETURN_TRUE;
}

/* Waiter.add_done_callback(callback, context=...), as tasks call it. */
static PyObject *
add_done_callback(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    if (nargs != 2 || names == NULL || PyTuple_GET_SIZE(names) != 1 || !is_waiter(state, args[0]) ||
        !PyContext_CheckExact(args[2]))
        return call_pure(pure, args, nargs, names);
    Waiter *self = (Waiter *)args[0];
    Py_XSETREF(self->wakeup, Py_NewRef(args[1]));
    Py_XSETREF(self->context, Py_NewRef(args[2]));
    Py_RETURN_NONE;
}

const Function poller_functions[] = {
    {"Waiter.add_done_callback", add_done_callback},
    {"Connection._on_readable", on_readable},
    {"Connection._spun", spun},
    {"Poller._on_ready", on_ready},
    {0},
};
