/* Posting: `post()` and broadcasts, as long as the kernel has room for all of it.
 *
 * Theory of operation. Of a broadcast nearly all the time is the kernel's; ours is the way to each connection, whose
 * memory the processor has not seen for long: it is asked for some sends ahead. Python does all that is not usual.
 */
#include "speedups.h"

#define TURN 64 /* sends in a row, until other threads have their turn */

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
    PyObject *from = PyLong_FromSsize_t(sent);
    PyObject *kept = from == NULL ? NULL : PyObject_CallMethodObjArgs((PyObject *)self, N(_keep), data, from, NULL);
    Py_XDECREF(from);
    return kept;
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
