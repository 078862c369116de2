/* Receiving: `receive()`, `receive_until()`, and the chunks that iteration and all others stand on.
 *
 * Theory of operation. The usual connection has no TLS, is not closed, broken or draining: `_recv` is the socket's own
 * method. There a receive waits if the poller watches, and else tries first, as streams/receiving.py says. After a
 * wake-up the state may be another one. It is called before anything else: so no wake-up is lost.
 *
 * Small receives go through one scratch buffer, and are copied: memory of the size that came, and no resizing. They
 * keep the GIL, for a microsecond or two. After a large one the next has its own bytes object, and releases the GIL.
 */
#include "speedups.h"

#define COPIED 8192 /* bytes from which copying costs more than resizing */

/* What came; no bytes: the end. */
typedef struct {
    PyObject *object; /* NULL: the bytes lie in the scratch buffer, until the next receive */
    const char *bytes;
    Py_ssize_t size;
} Chunk;

static int can_receive(Connection *self) {
    return is_plain(self, self->recv) && is_waiter(self->reading);
}

static int has_buffered(Connection *self) {
    return self->buffer != NULL && PyByteArray_CheckExact(self->buffer) && PyByteArray_GET_SIZE(self->buffer) > 0;
}

/* Receive at most `max` bytes from the socket: 0, or -1 with an exception or, as recv(2), with `errno`. */
static int receive_bytes(State *state, Connection *self, Py_ssize_t max, Chunk *chunk) {
    ssize_t n;
    if (!self->large && max <= ANY) {
        *chunk = (Chunk){NULL, state->scratch, n = recv((int)self->fd, state->scratch, (size_t)max, 0)};
    } else {
        if ((chunk->object = PyBytes_FromStringAndSize(NULL, max)) == NULL)
            return -1;
        int fd = (int)self->fd, error;
        char *room = PyBytes_AS_STRING(chunk->object);
        Py_BEGIN_ALLOW_THREADS
        n = recv(fd, room, (size_t)max, 0);
        error = errno;
        Py_END_ALLOW_THREADS
        errno = error;
        if (n <= 0)
            Py_CLEAR(chunk->object);
        else if (n < max && _PyBytes_Resize(&chunk->object, n))
            return -1;
        chunk->bytes = n > 0 ? PyBytes_AS_STRING(chunk->object) : NULL;
        chunk->size = n;
    }
    if (n > 0)
        self->large = n > CHUNK || (self->large == 2 && n >= CHUNK / 4) ? 2 : n >= COPIED;
    return n < 0 ? -1 : 0;
}

/* The same by way of a state that the connection may have got while the task waited or paused. */
static int receive_by_state(State *state, Connection *self, Py_ssize_t max, Chunk *chunk) {
    if (is_plain(self, self->recv))
        return receive_bytes(state, self, max, chunk);
    PyObject *recv = PyObject_GetAttr((PyObject *)self, state->_recv); /* our own reference: it may set another state */
    PyObject *data = recv == NULL ? NULL : PyObject_CallFunction(recv, "n", max);
    Py_XDECREF(recv);
    if (data == NULL && PyErr_ExceptionMatches(PyExc_BlockingIOError)) {
        PyErr_Clear();
        errno = EAGAIN;
    }
    *chunk = (Chunk){data, NULL, 0};
    return data == NULL ? -1 : PyBytes_AsStringAndSize(data, (char **)&chunk->bytes, &chunk->size);
}

/* Receive, or wait until there is something. Where it returns PYGEN_RETURN and is not DONE, it has filled `chunk`. */
static PySendResult receive_chunk(State *state, Operation *self, int ready, Py_ssize_t max, Chunk *chunk,
                                  PyObject **result) {
    Connection *connection = (Connection *)self->args[0];
    for (;; ready = 0) {
        if (!ready) {
            if (!can_receive(connection) || is_busy((Waiter *)connection->reading))
                return operation_leave_to_pure(self, result); /* which raises the error */
            if (connection->watching == Py_True)
                return operation_wait(self, (Waiter *)connection->reading, result);
            if (connection->watching == Py_None && connection->bytes_received > 0) {
                /* The first receive took what was here; mostly a second one would be in vain. */
                if (failed(PyObject_CallMethodNoArgs(self->args[0], state->_watch_for_bytes)))
                    return operation_return(self, NULL, result);
                continue;
            }
            int pause = spun(state, connection);
            if (pause < 0)
                return operation_return(self, NULL, result);
            if (pause)
                return operation_pause(self, is_waiter(connection->reading) ? (Waiter *)connection->reading : NULL,
                                       result);
        }
        if (receive_by_state(state, connection, max, chunk) == 0) {
            connection->bytes_received += chunk->size;
            return PYGEN_RETURN;
        }
        Py_XDECREF(chunk->object); /* of another type */
        if (!PyErr_Occurred() && errno != EAGAIN && errno != EINTR)
            PyErr_SetFromErrno(PyExc_OSError);
        if (PyErr_Occurred())
            return operation_raised(state, self, result);
        if (failed(PyObject_CallMethodNoArgs(self->args[0], state->_watch_for_bytes)))
            return operation_return(self, NULL, result);
    }
}

/* The end has come: raise `end`, or let the Python function raise its own. */
static PySendResult reach_end(State *state, Operation *self, Chunk *chunk, PyObject *end, PyObject **result) {
    Py_XDECREF(chunk->object);
    if (failed(PyObject_CallMethodNoArgs(self->args[0], state->_reach_end)))
        return operation_return(self, NULL, result);
    if (end == NULL)
        return operation_leave_to_pure(self, result);
    PyErr_SetNone(end);
    return operation_return(self, NULL, result);
}

/* -- receive(), and the chunks */

static PySendResult receive_step(State *state, Operation *self, int was, PyObject **result) {
    Chunk chunk;
    if (was == FRESH && self->nargs < 4 && has_buffered((Connection *)self->args[0]))
        return operation_leave_to_pure(self, result);
    PySendResult how = receive_chunk(state, self, was != FRESH, self->max, &chunk, result);
    if (how != PYGEN_RETURN || self->state == DONE)
        return how;
    if (chunk.size > 0)
        return operation_return(
            self, chunk.object != NULL ? chunk.object : PyBytes_FromStringAndSize(chunk.bytes, chunk.size), result);
    PyObject *end = self->nargs > 2 ? self->args[2] : self->warns ? state->end_of_stream : PyExc_StopAsyncIteration;
    return reach_end(state, self, &chunk, end, result);
}

/* Whether an argument is a number of bytes that needs no second look. */
static int is_count(PyObject *given, Py_ssize_t *count) {
    if (!PyLong_CheckExact(given))
        return 0;
    *count = PyLong_AsSsize_t(given);
    if (*count == -1)
        PyErr_Clear();
    return *count >= 1;
}

/* Receiving.receive(max_bytes) */
PyObject *receive(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs) {
    Py_ssize_t max = CHUNK;
    if (!can_receive((Connection *)args[0]) || (nargs == 2 && !is_count(args[1], &max)))
        return call_pure(pure, args, nargs);
    return operation_new(state, receive_step, pure, args, nargs, max);
}

/* Receiving._chunk(max_bytes, end, more), and __anext__() */
PyObject *next_chunk(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs) {
    Connection *connection = (Connection *)args[0];
    Py_ssize_t max = nargs == 1 && connection->large == 2 ? 4 * CHUNK : ANY; /* a flood comes in fewer pieces */
    if (!can_receive(connection) || (nargs > 1 && !is_count(args[1], &max)) ||
        (nargs > 2 && !PyExceptionClass_Check(args[2])) || (nargs > 3 && args[3] != Py_True))
        return call_pure(pure, args, nargs);
    Operation *self = (Operation *)operation_new(state, receive_step, pure, args, nargs, max);
    if (self != NULL)
        self->warns = 0; /* generators do not */
    return (PyObject *)self;
}

/* -- receive_until() */

/* Where the delimiter begins, or -1. */
static Py_ssize_t find(Operation *self, const char *bytes, Py_ssize_t size) {
    PyObject *delimiter = self->args[1];
    const char *found = memmem(bytes, (size_t)(size < self->max ? size : self->max), PyBytes_AS_STRING(delimiter),
                               (size_t)PyBytes_GET_SIZE(delimiter));
    return found == NULL ? -1 : found - bytes;
}

/* Make a line of the first bytes; as Dialogue.begin_message(). */
static PyObject *begin_message(Connection *self, const char *bytes, Py_ssize_t length, Py_ssize_t unconsumed) {
    PyObject *line = PyBytes_FromStringAndSize(bytes, length);
    if (line != NULL && self->message_sent != self->bytes_sent) {
        self->message_sent = self->bytes_sent;
        self->message_at = self->bytes_received - unconsumed;
    }
    return line;
}

/* Take the line that is in the buffer, or leave to Python a buffer without one, or another task's. */
static PySendResult take_line(State *state, Operation *self, Connection *connection, int counts, PyObject **result) {
    int pause = counts ? spun(state, connection) : 0;
    if (pause)
        return pause < 0 ? operation_return(self, NULL, result) : operation_pause(self, NULL, result);
    if (!has_buffered(connection) || !can_receive(connection) || is_busy((Waiter *)connection->reading))
        return operation_leave_to_pure(self, result);
    Py_ssize_t size = PyByteArray_GET_SIZE(connection->buffer);
    const char *bytes = PyByteArray_AS_STRING(connection->buffer);
    Py_ssize_t found = find(self, bytes, size);
    if (found < 0)
        return operation_leave_to_pure(self, result);
    PyObject *line = begin_message(connection, bytes, found, size);
    if (line != NULL && PySequence_DelSlice(connection->buffer, 0, found + PyBytes_GET_SIZE(self->args[1])))
        Py_CLEAR(line);
    return operation_return(self, line, result);
}

static PySendResult receive_until_step(State *state, Operation *self, int was, PyObject **result) {
    Connection *connection = (Connection *)self->args[0];
    if (was != WAITING && !can_receive(connection))
        return operation_leave_to_pure(self, result);
    if (was != WAITING && has_buffered(connection))
        return take_line(state, self, connection, was == FRESH, result);
    Chunk chunk;
    PySendResult how = receive_chunk(state, self, was == WAITING, CHUNK, &chunk, result);
    if (how != PYGEN_RETURN || self->state == DONE)
        return how;
    if (chunk.size == 0)
        return reach_end(state, self, &chunk, NULL, result);
    Py_ssize_t line = chunk.size - PyBytes_GET_SIZE(self->args[1]);
    int whole = line >= 0 && find(self, chunk.bytes, chunk.size) == line; /* mostly so: one line, and no buffer */
    PyObject *made = whole ? begin_message(connection, chunk.bytes, line, chunk.size)
                           : PyByteArray_FromStringAndSize(chunk.bytes, chunk.size);
    Py_XDECREF(chunk.object);
    if (whole || made == NULL)
        return operation_return(self, made, result);
    Py_XSETREF(connection->buffer, made); /* which was empty */
    return take_line(state, self, connection, 0, result);
}

/* Receiving.receive_until(delimiter, max_bytes) */
PyObject *receive_until(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs) {
    Py_ssize_t limit;
    if (!PyBytes_CheckExact(args[1]) || PyBytes_GET_SIZE(args[1]) == 0 || !is_count(args[2], &limit) ||
        !can_receive((Connection *)args[0]))
        return call_pure(pure, args, nargs);
    return operation_new(state, receive_until_step, pure, args, nargs, limit);
}
