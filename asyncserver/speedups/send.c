/* Sending: `send()`, as long as the kernel has room for all of it.
 *
 * Theory of operation. The bytes go to the kernel in the first step, so mostly a send waits for nothing. What the
 * kernel has no room for goes on in Python, `_send_rest()`, as do all states but the socket's own, and an item that is
 * no bytes object.
 */
#include "speedups.h"

#define LARGE 16384 /* bytes; for more the GIL is released */

static ssize_t send_bytes(int fd, PyObject *item) {
    const char *bytes = PyBytes_AS_STRING(item);
    size_t size = (size_t)PyBytes_GET_SIZE(item);
    if (size <= LARGE)
        return send(fd, bytes, size, MSG_NOSIGNAL);
    ssize_t n;
    int error;
    Py_BEGIN_ALLOW_THREADS
    n = send(fd, bytes, size, MSG_NOSIGNAL);
    error = errno;
    Py_END_ALLOW_THREADS
    errno = error;
    return n;
}

/* Wait for room, then send what has not been sent. */
static PySendResult send_rest(State *state, Operation *self, Py_ssize_t sent, PyObject **result) {
    PyObject *view = PyMemoryView_FromObject(self->args[1]);
    PyObject *rest = view == NULL ? NULL : PySequence_GetSlice(view, sent, PY_SSIZE_T_MAX);
    Py_XDECREF(view);
    if (rest == NULL)
        return operation_fail(self);
    PyObject *args[] = {self->args[0], rest, sent ? Py_False : Py_True};
    PyObject *coroutine = PyObject_VectorcallMethod(N(_send_rest), args, 2, state->blocked);
    Py_DECREF(rest);
    return operation_delegate(self, coroutine, result);
}

static PySendResult send_step(State *state, Operation *self, int was, PyObject **result) {
    Connection *connection = (Connection *)self->args[0];
    if (was == PAUSED)
        return operation_return(self, Py_NewRef(Py_None), result);
    if (!is_plain(connection, connection->send))
        return operation_leave_to_pure(self, result);
    ssize_t n = send_bytes(connection->fd, self->args[1]);
    if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        PyErr_SetFromErrno(PyExc_OSError);
        return operation_raised(state, self, result);
    }
    if (n < 0)
        n = 0;
    connection->bytes_sent += n;
    if (n != PyBytes_GET_SIZE(self->args[1]))
        return send_rest(state, self, n, result);
    if (connection->answered != connection->bytes_received) {
        connection->answered = connection->bytes_received;
    } else {
        /* Nothing was received since the last send: perhaps this task never waits. */
        int pause = spun(state, connection);
        if (pause < 0)
            return operation_fail(self);
        if (pause)
            return operation_pause(state, self, NULL, result);
    }
    return operation_return(self, Py_NewRef(Py_None), result);
}

static PyObject *send_item(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    if (names != NULL || nargs != 2 || !is_connection(state, args[0]) || !PyBytes_CheckExact(args[1]) ||
        !is_plain((Connection *)args[0], ((Connection *)args[0])->send))
        return call_pure(pure, args, nargs, names);
    return operation_new(state, send_step, pure, args, nargs, 0);
}

const Function send_functions[] = {
    {"Sending.send", send_item},
    {0},
};
