/* Sending: `send()`, `post()` and broadcasts, as long as the kernel has room for all of it.
 *
 * Theory of operation. The bytes go to the kernel in the first step, so mostly a send waits for nothing. What the
 * kernel has no room for goes on in Python, `_send_rest()` and `_keep()`, as do all states but the socket's own, and an
 * item that is no bytes object.
 *
 * Of a broadcast nearly all the time is the kernel's; ours is the way to each connection, whose memory the processor
 * has not seen for long: it is asked for some sends ahead.
 */
#include "speedups.h"

#define LARGE 16384 /* bytes; sending more releases the GIL */
#define TURN 64     /* sends in a row, until other threads have their turn */

/* Send what the kernel has room for: how many bytes, 0 if none; -1 with an OSError. */
static Py_ssize_t send_bytes(Connection *self, PyObject *item) {
    const char *bytes = PyBytes_AS_STRING(item);
    size_t size = (size_t)PyBytes_GET_SIZE(item);
    ssize_t n;
    if (size <= LARGE) {
        n = send((int)self->fd, bytes, size, MSG_NOSIGNAL);
    } else {
        int fd = (int)self->fd, error;
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

/* Have a method do the rest: _send_rest(item, sent), _keep(item, sent). */
static PyObject *call_for_rest(PyObject *self, PyObject *method, PyObject *item, Py_ssize_t sent) {
    PyObject *number = PyLong_FromSsize_t(sent);
    PyObject *answer = number == NULL ? NULL : PyObject_CallMethodObjArgs(self, method, item, number, NULL);
    Py_XDECREF(number);
    return answer;
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
        return operation_delegate(self, call_for_rest(self->args[0], state->_send_rest, self->args[1], n), result);
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

/* -- without waiting */

static int is_usual(PyObject *stream, PyObject *data) {
    return is_connection(stream) && is_plain((Connection *)stream, ((Connection *)stream)->send) &&
           PyBytes_CheckExact(data) && PyBytes_GET_SIZE(data) <= LARGE;
}

static PyObject *post_usual(State *state, Connection *self, PyObject *data) {
    Py_ssize_t sent = send_bytes(self, data);
    if (sent < 0)
        return connection_broke(state, self) ? NULL : Py_NewRef(Py_False);
    self->answered = self->bytes_received;
    if (sent == PyBytes_GET_SIZE(data))
        return Py_NewRef(Py_True);
    return call_for_rest((PyObject *)self, state->_keep, data, sent);
}

/* Sending.post(data) */
PyObject *post(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs) {
    if (!is_usual(args[0], args[1]))
        return call_pure(pure, args, nargs);
    return post_usual(state, (Connection *)args[0], args[1]);
}

/* Whatever an address is, to ask for what is there does no harm: a connection's type, state, counters and descriptor. */
static void begin_turn(PyObject *const *streams, Py_ssize_t count) {
    Py_BEGIN_ALLOW_THREADS
    Py_END_ALLOW_THREADS
    for (; count > 0; count--, streams++)
        for (size_t at = 0; at < sizeof(Connection); at += 64)
            __builtin_prefetch((char *)*streams + at);
}

/* post_to_all(streams, data, exclude) */
PyObject *post_to_all(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs) {
    if (!PyTuple_CheckExact(args[0]))
        return call_pure(pure, args, nargs);
    long posted = 0;
    for (Py_ssize_t i = 0, count = PyTuple_GET_SIZE(args[0]); i < count; i++) {
        PyObject *stream = PyTuple_GET_ITEM(args[0], i), *alone = NULL, *number = NULL;
        if (i % TURN == 0)
            begin_turn(&PyTuple_GET_ITEM(args[0], i), count - i < TURN ? count - i : TURN);
        if (stream != args[2] && is_usual(stream, args[1]))
            number = post_usual(state, (Connection *)stream, args[1]);
        else if ((alone = PyTuple_Pack(1, stream)) != NULL)
            number = call_pure(pure, ((PyObject *[]){alone, args[1], args[2]}), 3);
        Py_XDECREF(alone);
        if (number == NULL)
            return NULL;
        posted += PyObject_IsTrue(number);
        Py_DECREF(number);
    }
    return PyLong_FromLong(posted);
}
