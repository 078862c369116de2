/* Receiving: `receive()`, `receive_until()`, and the chunks that iteration and all others stand on.
 *
 * Theory of operation. The usual connection has no TLS, is not closed, broken or draining: `_recv` is the socket's own
 * method. There a receive waits if the poller watches, and else tries first, as streams/receiving.py says. After a
 * wake-up the state may be another one. It is called before anything else: so no wake-up is lost.
 *
 * Small receives go through one scratch buffer, and are copied: memory of the size that came, and no resizing. They
 * keep the GIL, for a microsecond or two. After a large one the next goes into a bytes object of its own, without the
 * GIL.
 */
#include "speedups.h"

#define LARGE 8192 /* bytes from which copying costs more than resizing */

static int can_receive(State *state, Connection *self) {
    return is_plain(self, self->recv) && is_waiter(state, self->reading);
}

static int has_buffered(Connection *self) {
    return self->buffer != NULL && PyByteArray_CheckExact(self->buffer) && PyByteArray_GET_SIZE(self->buffer) > 0;
}

/* Receive at most `max` bytes; returns as recv(2) does, and -2 for a Python error. */
static ssize_t receive_bytes(State *state, Connection *self, Py_ssize_t max, PyObject **data) {
    ssize_t n;
    *data = NULL;
    if (!self->large && max <= ANY) {
        n = recv(self->fd, state->scratch, (size_t)max, 0);
        if (n > 0 && (*data = PyBytes_FromStringAndSize(state->scratch, n)) == NULL)
            return -2;
    } else {
        if ((*data = PyBytes_FromStringAndSize(NULL, max)) == NULL)
            return -2;
        int fd = self->fd, error;
        char *room = PyBytes_AS_STRING(*data);
        Py_BEGIN_ALLOW_THREADS
        n = recv(fd, room, (size_t)max, 0);
        error = errno;
        Py_END_ALLOW_THREADS
        errno = error;
        if (n <= 0)
            Py_CLEAR(*data);
        else if (n < max && _PyBytes_Resize(data, n))
            return -2;
    }
    if (n > 0) {
        self->large = n > CHUNK || (self->large == 2 && n >= CHUNK / 4) ? 2 : n >= LARGE;
        self->bytes_received += n;
    }
    return n;
}

/* The same by way of a state that the connection has got while the task waited or paused; -3: it would block. */
static ssize_t receive_by_state(State *state, Connection *self, Py_ssize_t max, PyObject **data) {
    if (is_plain(self, self->recv))
        return receive_bytes(state, self, max, data);
    PyObject *recv = PyObject_GetAttr((PyObject *)self, N(_recv)); /* our own reference: it may set another state */
    PyObject *number = recv == NULL ? NULL : PyLong_FromSsize_t(max);
    *data = number == NULL ? NULL : PyObject_CallOneArg(recv, number);
    Py_XDECREF(number);
    Py_XDECREF(recv);
    if (*data == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_BlockingIOError))
            return -2;
        PyErr_Clear();
        return -3;
    }
    Py_ssize_t n = PyBytes_Check(*data) ? PyBytes_GET_SIZE(*data) : 0;
    if (n == 0)
        Py_CLEAR(*data);
    self->bytes_received += n;
    return n;
}

/* Raise IdleTimeout if it is time, and else watch. */
static int watch(State *state, Connection *self) {
    PyObject *object = (PyObject *)self;
    if (self->idle_read != -1 && failed(PyObject_CallMethodNoArgs(object, N(_check_idle_read))))
        return -1;
    return failed(PyObject_CallMethodNoArgs(object, N(_watch))) ? -1 : 0;
}

/* What comes next has been received, and is in `data`; or the end has come, and it is NULL. Or wait for it. */
static PySendResult next_chunk(State *state, Operation *self, int was, Py_ssize_t max, PyObject **data,
                               PyObject **result) {
    Connection *connection = (Connection *)self->args[0];
    for (int ready = was != FRESH;;) {
        if (!ready) {
            Waiter *waiter = (Waiter *)connection->reading;
            if (!is_waiter(state, connection->reading) || is_busy(waiter))
                return operation_leave_to_pure(self, result); /* which raises the error */
            if (connection->watching == Py_True)
                return operation_wait(self, waiter, result);
            if (connection->watching == Py_None && connection->bytes_received > 0) {
                /* The first receive took what was here; mostly a second one would be in vain. */
                if (watch(state, connection))
                    return operation_fail(self);
                continue;
            }
            int pause = spun(state, connection);
            if (pause < 0)
                return operation_fail(self);
            if (pause && connection->reading != (PyObject *)waiter)
                continue;
            if (pause)
                return operation_pause(state, self, waiter, result);
        }
        ssize_t n = (ready ? receive_by_state : receive_bytes)(state, connection, max, data);
        ready = 0;
        if (n >= 0)
            return PYGEN_RETURN;
        if (n == -2)
            return operation_raised(state, self, result);
        if (n == -3)
            return operation_leave_to_pure(self, result);
        if (errno == EINTR) {
            if (PyErr_CheckSignals())
                return operation_fail(self);
            ready = 1;
        } else if (errno != EAGAIN && errno != EWOULDBLOCK) {
            PyErr_SetFromErrno(PyExc_OSError);
            return operation_raised(state, self, result);
        } else if (watch(state, connection)) {
            return operation_fail(self);
        }
    }
}

/* -- receive(), and the chunks */

static PySendResult receive_step(State *state, Operation *self, int was, PyObject **result) {
    Connection *connection = (Connection *)self->args[0];
    PyObject *data;
    if (was == FRESH && (!can_receive(state, connection) || (self->keywords == NULL && has_buffered(connection))))
        return operation_leave_to_pure(self, result);
    PySendResult how = next_chunk(state, self, was, self->max, &data, result);
    if (how != PYGEN_RETURN || self->state == DONE)
        return how;
    if (data != NULL)
        return operation_return(self, data, result);
    if (!failed(PyObject_CallMethodNoArgs((PyObject *)connection, N(_reach_end))))
        PyErr_SetNone(self->end);
    return operation_fail(self);
}

/* Whether an argument is a number of bytes that needs no second look. */
static int is_count(PyObject *given, Py_ssize_t *count) {
    if (!PyLong_CheckExact(given))
        return 0;
    *count = PyLong_AsSsize_t(given);
    if (*count == -1 && PyErr_Occurred())
        PyErr_Clear();
    return *count >= 1;
}

static PyObject *receive(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    Py_ssize_t max = CHUNK;
    if (names != NULL || nargs < 1 || nargs > 2 || !is_connection(state, args[0]) ||
        !can_receive(state, (Connection *)args[0]) || (nargs == 2 && !is_count(args[1], &max)))
        return call_pure(pure, args, nargs, names);
    Operation *self = operation_new(state, receive_step, pure, args, nargs, NULL);
    if (self != NULL) {
        self->max = max;
        self->end = Py_NewRef(state->end_of_stream);
    }
    return (PyObject *)self;
}

/* _chunk(max_bytes, end, more=True), and __anext__(). */
static PyObject *chunk(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    Py_ssize_t max = ANY;
    PyObject *end = PyExc_StopAsyncIteration;
    if (nargs < 1 || nargs > 3 || !is_connection(state, args[0]) || !can_receive(state, (Connection *)args[0]) ||
        (nargs > 1 && !is_count(args[1], &max)) || (nargs > 2 && !PyExceptionClass_Check(end = args[2])) ||
        (names != NULL && (PyTuple_GET_SIZE(names) != 1 || args[nargs] != Py_True))) /* more=True */
        return call_pure(pure, args, nargs, names);
    if (nargs == 1 && ((Connection *)args[0])->large == 2)
        max = 4 * CHUNK; /* iteration asks for no size: a flood comes in fewer pieces */
    Operation *self = operation_new(state, receive_step, pure, args, nargs, names);
    if (self != NULL) {
        self->max = max;
        self->end = Py_NewRef(end);
        self->warns = 0; /* generators do not */
    }
    return (PyObject *)self;
}

/* -- receive_until() */

/* As Dialogue.begin_message(). */
static void begin_message(Connection *self, Py_ssize_t unconsumed) {
    if (self->message_sent != self->bytes_sent) {
        self->message_sent = self->bytes_sent;
        self->message_at = self->bytes_received - unconsumed;
    }
}

static Py_ssize_t find(const char *bytes, Py_ssize_t size, PyObject *delimiter, Py_ssize_t limit) {
    const char *found = memmem(bytes, (size_t)(size < limit ? size : limit), PyBytes_AS_STRING(delimiter),
                               (size_t)PyBytes_GET_SIZE(delimiter));
    return found == NULL ? -1 : found - bytes;
}

/* Take the line that `may_have_line()` has found. */
static PyObject *cut_line(Connection *self, PyObject *delimiter, Py_ssize_t limit) {
    Py_ssize_t size = PyByteArray_GET_SIZE(self->buffer);
    Py_ssize_t found = find(PyByteArray_AS_STRING(self->buffer), size, delimiter, limit);
    PyObject *line = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(self->buffer), found);
    if (line == NULL || PySequence_DelSlice(self->buffer, 0, found + PyBytes_GET_SIZE(delimiter))) {
        Py_XDECREF(line);
        return NULL;
    }
    begin_message(self, size);
    return line;
}

/* False: a buffer without the whole line, or another task's. */
static int may_have_line(Connection *self, PyObject *delimiter, Py_ssize_t limit) {
    return !has_buffered(self) ||
           (!is_busy((Waiter *)self->reading) && find(PyByteArray_AS_STRING(self->buffer),
                                                     PyByteArray_GET_SIZE(self->buffer), delimiter, limit) >= 0);
}

static PySendResult receive_until_step(State *state, Operation *self, int was, PyObject **result) {
    Connection *connection = (Connection *)self->args[0];
    PyObject *delimiter = self->args[1], *data;
    int first = was == FRESH || self->waiter == NULL; /* nothing is taken yet */
    if (first && (!can_receive(state, connection) || !may_have_line(connection, delimiter, self->max)))
        return operation_leave_to_pure(self, result);
    if (was == FRESH) {
        int pause = spun(state, connection);
        if (pause < 0)
            return operation_fail(self);
        if (pause)
            return operation_pause(state, self, NULL, result);
    }
    if (first && has_buffered(connection))
        return operation_return(self, cut_line(connection, delimiter, self->max), result);
    PySendResult how = next_chunk(state, self, first ? FRESH : was, CHUNK, &data, result);
    if (how != PYGEN_RETURN || self->state == DONE)
        return how;
    if (data == NULL) {
        if (failed(PyObject_CallMethodNoArgs((PyObject *)connection, N(_reach_end))))
            return operation_fail(self);
        return operation_leave_to_pure(self, result);
    }
    Py_ssize_t size = PyBytes_GET_SIZE(data), line = size - PyBytes_GET_SIZE(delimiter);
    if (find(PyBytes_AS_STRING(data), size, delimiter, self->max) == line && line >= 0) {
        /* Mostly so: one line, and no buffer. */
        begin_message(connection, size);
        PyObject *without = PyBytes_FromStringAndSize(PyBytes_AS_STRING(data), line);
        Py_DECREF(data);
        return operation_return(self, without, result);
    }
    PyObject *buffer = PyByteArray_FromObject(data);
    Py_DECREF(data);
    if (buffer == NULL)
        return operation_fail(self);
    Py_XSETREF(connection->buffer, buffer); /* which was empty */
    if (!is_waiter(state, connection->reading) || !may_have_line(connection, delimiter, self->max))
        return operation_leave_to_pure(self, result);
    return operation_return(self, cut_line(connection, delimiter, self->max), result);
}

static PyObject *receive_until(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    Py_ssize_t limit;
    if (names != NULL || nargs != 3 || !is_connection(state, args[0]) || !PyBytes_CheckExact(args[1]) ||
        PyBytes_GET_SIZE(args[1]) == 0 || !is_count(args[2], &limit) || !can_receive(state, (Connection *)args[0]))
        return call_pure(pure, args, nargs, names);
    Operation *self = operation_new(state, receive_until_step, pure, args, nargs, NULL);
    if (self != NULL)
        self->max = limit;
    return (PyObject *)self;
}

const Function receive_functions[] = {
    {"Receiving.receive", receive},
    {"Receiving._chunk", chunk},
    {"Receiving.receive_until", receive_until},
    {0},
};
