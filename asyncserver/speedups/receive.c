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

/* Receive at most `max` bytes: 0, or -1 with an exception or, as recv(2), with `errno`. */
static int receive_bytes(State *state, Connection *self, Py_ssize_t max, Chunk *chunk) {
    ssize_t n;
    if (!self->large && max <= ANY) {
        *chunk = (Chunk){NULL, state->scratch, n = recv(self->fd, state->scratch, (size_t)max, 0)};
    } else {
        if ((chunk->object = PyBytes_FromStringAndSize(NULL, max)) == NULL)
            return -1;
        int fd = self->fd, error;
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
        chunk->bytes = chunk->object == NULL ? NULL : PyBytes_AS_STRING(chunk->object);
        chunk->size = n;
    }
    if (n > 0) {
        self->large = n > CHUNK || (self->large == 2 && n >= CHUNK / 4) ? 2 : n >= LARGE;
        self->bytes_received += n;
    }
    return n < 0 ? -1 : 0;
}

/* The same by way of a state that the connection may have got while the task waited or paused. */
static int receive_by_state(State *state, Connection *self, Py_ssize_t max, Chunk *chunk) {
    if (is_plain(self, self->recv))
        return receive_bytes(state, self, max, chunk);
    PyObject *recv = PyObject_GetAttr((PyObject *)self, N(_recv)); /* our own reference: it may set another state */
    PyObject *data = recv == NULL ? NULL : PyObject_CallFunction(recv, "n", max);
    Py_XDECREF(recv);
    *chunk = (Chunk){data, NULL, 0};
    if (data != NULL && PyBytes_Check(data)) {
        self->bytes_received += chunk->size = PyBytes_GET_SIZE(data);
        chunk->bytes = PyBytes_AS_STRING(data);
    }
    if (chunk->size == 0)
        Py_CLEAR(chunk->object);
    if (data == NULL && PyErr_ExceptionMatches(PyExc_BlockingIOError)) {
        PyErr_Clear();
        errno = EAGAIN;
    }
    return data == NULL ? -1 : 0;
}

/* Raise IdleTimeout if it is time, and else watch; true with an exception. */
static int watch(State *state, Connection *self) {
    PyObject *object = (PyObject *)self;
    if (self->idle_read != -1 && failed(PyObject_CallMethodNoArgs(object, N(_check_idle_read))))
        return 1;
    return failed(PyObject_CallMethodNoArgs(object, N(_watch)));
}

/* Receive, or wait until there is something. Where it returns PYGEN_RETURN and is not DONE, it has filled `chunk`. */
static PySendResult next_chunk(State *state, Operation *self, int ready, Py_ssize_t max, Chunk *chunk,
                               PyObject **result) {
    Connection *connection = (Connection *)self->args[0];
    for (;; ready = 0) {
        Waiter *waiter = (Waiter *)connection->reading;
        int pause = 0, failure;
        if (ready) {
            failure = receive_by_state(state, connection, max, chunk);
        } else if (!is_waiter(connection->reading) || is_busy(waiter)) {
            return operation_leave_to_pure(self, result); /* which raises the error */
        } else if (connection->watching == Py_True) {
            return operation_wait(self, waiter, result);
        } else if (connection->watching == Py_None && connection->bytes_received > 0) {
            failure = -1; /* the first receive took what was here; mostly a second one would be in vain */
            errno = EAGAIN;
        } else if ((pause = spun(state, connection)) != 0) {
            return pause < 0 ? operation_fail(self) : operation_pause(state, self, waiter, result);
        } else { /* a class's own `_spun()` may have closed it */
            failure = receive_by_state(state, connection, max, chunk);
        }
        if (!failure)
            return PYGEN_RETURN;
        if (PyErr_Occurred())
            return operation_raised(state, self, result);
        if (errno != EAGAIN && errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            return operation_raised(state, self, result);
        }
        if (watch(state, connection))
            return operation_fail(self);
    }
}

static int reach_end(State *state, Connection *self) {
    return failed(PyObject_CallMethodNoArgs((PyObject *)self, N(_reach_end)));
}

/* -- receive(), and the chunks */

static PySendResult receive_step(State *state, Operation *self, int was, PyObject **result) {
    Connection *connection = (Connection *)self->args[0];
    Chunk chunk;
    if (was == FRESH && (!can_receive(connection) || (self->nargs < 4 && has_buffered(connection))))
        return operation_leave_to_pure(self, result);
    PySendResult how = next_chunk(state, self, was != FRESH, self->max, &chunk, result);
    if (how != PYGEN_RETURN || self->state == DONE)
        return how;
    if (chunk.size > 0)
        return operation_return(
            self, chunk.object != NULL ? chunk.object : PyBytes_FromStringAndSize(chunk.bytes, chunk.size), result);
    if (!reach_end(state, connection))
        PyErr_SetNone(self->nargs > 2 ? self->args[2] : self->warns ? state->end_of_stream : PyExc_StopAsyncIteration);
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
        !can_receive((Connection *)args[0]) || (nargs == 2 && !is_count(args[1], &max)))
        return call_pure(pure, args, nargs, names);
    return operation_new(state, receive_step, pure, args, nargs, max);
}

/* _chunk(max_bytes, end, more), and __anext__(). */
static PyObject *chunk(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    Py_ssize_t max = ANY;
    if (names != NULL || nargs < 1 || nargs > 4 || !is_connection(state, args[0]) ||
        !can_receive((Connection *)args[0]) || (nargs > 1 && !is_count(args[1], &max)) ||
        (nargs > 2 && !PyExceptionClass_Check(args[2])) || (nargs > 3 && args[3] != Py_True))
        return call_pure(pure, args, nargs, names);
    if (nargs == 1 && ((Connection *)args[0])->large == 2)
        max = 4 * CHUNK; /* iteration asks for no size: a flood comes in fewer pieces */
    Operation *self = (Operation *)operation_new(state, receive_step, pure, args, nargs, max);
    if (self != NULL)
        self->warns = 0; /* generators do not */
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

/* Where the delimiter begins, or -1. */
static Py_ssize_t find(const char *bytes, Py_ssize_t size, PyObject *delimiter, Py_ssize_t limit) {
    const char *found = memmem(bytes, (size_t)(size < limit ? size : limit), PyBytes_AS_STRING(delimiter),
                               (size_t)PyBytes_GET_SIZE(delimiter));
    return found == NULL ? -1 : found - bytes;
}

/* Take the line that is in the buffer, or leave to Python a buffer without one, or another task's. */
static PySendResult take_line(State *state, Operation *self, Connection *connection, int counts, PyObject **result) {
    Py_ssize_t size = PyByteArray_GET_SIZE(connection->buffer);
    const char *bytes = PyByteArray_AS_STRING(connection->buffer);
    Py_ssize_t found = find(bytes, size, self->args[1], self->max);
    if (found < 0 || !is_waiter(connection->reading) || is_busy((Waiter *)connection->reading))
        return operation_leave_to_pure(self, result);
    int pause = counts ? spun(state, connection) : 0;
    if (pause)
        return pause < 0 ? operation_fail(self) : operation_pause(state, self, NULL, result);
    if (!has_buffered(connection) || PyByteArray_AS_STRING(connection->buffer) != bytes ||
        PyByteArray_GET_SIZE(connection->buffer) != size)
        return operation_leave_to_pure(self, result); /* a class's own `_spun()` has taken it */
    PyObject *line = PyBytes_FromStringAndSize(bytes, found);
    if (line != NULL && PySequence_DelSlice(connection->buffer, 0, found + PyBytes_GET_SIZE(self->args[1])))
        Py_CLEAR(line);
    if (line != NULL)
        begin_message(connection, size);
    return operation_return(self, line, result);
}

static PySendResult receive_until_step(State *state, Operation *self, int was, PyObject **result) {
    Connection *connection = (Connection *)self->args[0];
    int first = was == FRESH || self->waiter == NULL; /* nothing is taken yet */
    if (first && !can_receive(connection))
        return operation_leave_to_pure(self, result);
    if (first && has_buffered(connection))
        return take_line(state, self, connection, was == FRESH, result);
    Chunk chunk;
    PySendResult how = next_chunk(state, self, !first, CHUNK, &chunk, result);
    if (how != PYGEN_RETURN || self->state == DONE)
        return how;
    if (chunk.size == 0)
        return reach_end(state, connection) ? operation_fail(self) : operation_leave_to_pure(self, result);
    Py_ssize_t line = chunk.size - PyBytes_GET_SIZE(self->args[1]);
    int whole = line >= 0 && find(chunk.bytes, chunk.size, self->args[1], self->max) == line;
    PyObject *made = whole ? PyBytes_FromStringAndSize(chunk.bytes, line)
                           : PyByteArray_FromStringAndSize(chunk.bytes, chunk.size);
    Py_XDECREF(chunk.object);
    if (whole)
        begin_message(connection, chunk.size); /* mostly so: one line, and no buffer */
    if (whole || made == NULL)
        return operation_return(self, made, result);
    Py_XSETREF(connection->buffer, made); /* which was empty */
    return take_line(state, self, connection, 0, result);
}

static PyObject *receive_until(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    Py_ssize_t limit;
    if (names != NULL || nargs != 3 || !is_connection(state, args[0]) || !PyBytes_CheckExact(args[1]) ||
        PyBytes_GET_SIZE(args[1]) == 0 || !is_count(args[2], &limit) || !can_receive((Connection *)args[0]))
        return call_pure(pure, args, nargs, names);
    return operation_new(state, receive_until_step, pure, args, nargs, limit);
}

const Function receive_functions[] = {
    {"Receiving.receive", receive},
    {"Receiving._chunk", chunk},
    {"Receiving.receive_until", receive_until},
    {0},
};
