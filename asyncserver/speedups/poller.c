/* Poller: from epoll's events to the tasks that wait.
 *
 * Theory of operation. `Poller._on_ready` asks epoll for a batch and calls `_on_readable` and `_on_writable` of each
 * connection. Where a task waits to receive, its wake-up runs at once, in the task's context, as Connection's
 * `_on_readable` would have it. It gets a future that is done: the C task takes the result of an exact asyncio.Future
 * without a call (task_wakeup, Modules/_asynciomodule.c).
 */
#include "speedups.h"
#include <sys/epoll.h>

#define BATCH 128 /* as in net/poller.py */
#define READABLE (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)
#define WRITABLE (EPOLLOUT | EPOLLHUP | EPOLLERR)

/* As Waiter.wake(). */
static int wake(State *state, Waiter *waiter, PyObject *awake) {
    PyObject *args[] = {Py_NewRef(waiter->context), Py_NewRef(waiter->wakeup), awake};
    int failure = failed(PyObject_VectorcallMethod(state->run, args, 3, NULL));
    Py_DECREF(args[0]);
    Py_DECREF(args[1]);
    return failure;
}

/* Call one connection's methods for the events that it has got. Mostly a task waits to receive: it is woken at once. */
static int report(State *state, PyObject *connections, PyObject *awake, struct epoll_event *event) {
    PyObject *fd = PyLong_FromLong(event->data.fd);
    PyObject *connection = fd == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(connections, fd));
    Py_XDECREF(fd);
    if (connection == NULL)
        return PyErr_Occurred() ? -1 : 0; /* closed by a handler that ran earlier in this batch */
    PyObject *reading = is_connection(connection) ? ((Connection *)connection)->reading : NULL;
    int waits = is_waiter(reading) && is_busy((Waiter *)reading) && ((Waiter *)reading)->context != NULL, failure = 0;
    if (event->events & READABLE)
        failure = waits ? wake(state, (Waiter *)reading, awake)
                        : failed(PyObject_CallMethodNoArgs(connection, state->_on_readable));
    if (!failure && event->events & WRITABLE)
        failure = failed(PyObject_CallMethodNoArgs(connection, state->_on_writable));
    Py_DECREF(connection);
    return failure;
}

/* Poller._on_ready() */
PyObject *on_ready(State *state, PyObject *Py_UNUSED(pure), PyObject *const *args, Py_ssize_t Py_UNUSED(nargs)) {
    struct epoll_event events[BATCH];
    PyObject *number = PyObject_GetAttr(args[0], state->_epoll_fd), *connections = NULL, *awake = NULL;
    int epoll = number == NULL ? -1 : (int)PyLong_AsLong(number), failure = PyErr_Occurred() != NULL;
    if (!failure)
        failure = (connections = PyObject_GetAttr(args[0], state->_connections)) == NULL ||
                  (awake = PyObject_GetAttr(args[0], state->awake)) == NULL;
    int count = failure ? 0 : epoll_wait(epoll, events, BATCH, 0);
    if (count < 0 && errno != EINTR)
        failure = failed(PyErr_SetFromErrno(PyExc_OSError));
    for (int i = 0; i < count && !failure; i++)
        failure = report(state, connections, awake, &events[i]);
    Py_XDECREF(number);
    Py_XDECREF(connections);
    Py_XDECREF(awake);
    return failure ? NULL : Py_NewRef(Py_None);
}
