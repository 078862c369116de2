/* Sending: `send()`, as long as the kernel has room for all of it.
 *
 * Theory of operation. The bytes go to the kernel in the first step, so mostly a send waits for nothing. What the
 * kernel has no room for goes on in Python, `_send_rest()`, as do all states but the socket's own, and an item that is
 * no bytes object.
 */
#include "speedups.h"

/* Send what the kernel has room for: how many bytes, 0 if none; -1 with an OSError. */
Py_ssize_t send_bytes(Connection *self, PyObject *item) {
    const char *bytes = PyBytes_AS_STRING(item);
    size_t size = (size_t)PyBytes_GET_SIZE(item);
    ssize_t n;
    if (size <= LARGE) {
        n = send(self->fd, bytes, size, MSG_NOSIGNAL);
    } else {
        int fd = self->fd, error;
        Py_BEGIN_ALLOW_THREADS
        n = send(fd, bytes, size, MSG_NOSIGNAL);
        error = errno;
        Py_END_ALLOW_THREADS
        errno = error;
    }
    if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    n = n < 0 ? 0 : n;
    self->bytes_sent += n;
    return n;
}

/* Wait for room, then send what has not been sent. */
static PySendResult send_rest(State *state, Operation *self, Py_ssize_t sent, PyObject **result) {
    PyObject *view = PyMemoryView_FromObject(self->args[1]);
    PyObject *rest = view == NULL ? NULL : PySequence_GetSlice(view, sent, PY_SSIZE_T_MAX);
    PyObject *args[] = {self->args[0], rest, sent ? Py_False : Py_True};
    PyObject *coroutine = rest == NULL ? NULL : PyObject_VectorcallMethod(N(_send_rest), args, 2, state->blocked);
    Py_XDECREF(view);
    Py_XDECREF(rest);
    return operation_delegate(self, coroutine, result);
}

static PySendResult send_step(State *state, Operation *self, int was, PyObject **result) {
    Connection *connection = (Connection *)self->args[0];
    if (was == PAUSED)
        return operation_return(self, Py_NewRef(Py_None), result);
    if (!is_plain(connection, connection->send))
        return operation_leave_to_pure(self, result);
    Py_ssize_t n = send_bytes(connection, self->args[1]);
    if (n < 0)
        return operation_raised(state, self, result);
    if (n != PyBytes_GET_SIZE(self->args[1]))
        return send_rest(state, self, n, result);
    /* If nothing was received since the last send, this task perhaps never waits. */
    int pause = connection->answered == connection->bytes_received ? spun(state, connection) : 0;
    connection->answered = connection->bytes_received;
    if (pause > 0)
        return operation_pause(self, NULL, result);
    return operation_return(self, pause < 0 ? NULL : Py_NewRef(Py_None), result);
}

/* Sending.send(item) */
PyObject *send_item(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs) {
    if (!PyBytes_CheckExact(args[1]) || !is_plain((Connection *)args[0], ((Connection *)args[0])->send))
        return call_pure(pure, args, nargs);
    return operation_new(state, send_step, pure, args, nargs, 0);
}
