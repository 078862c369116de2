/* What the files of the extension share. */
#ifndef SPEEDUPS_H
#define SPEEDUPS_H

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

typedef struct State State;

/* Does the usual case of a Python function, and calls it, `pure`, for any other. Arguments as in PEP 590. */
typedef PyObject *(*Fast)(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names);

/* What `accelerate()` finds, by the qualified name of the definition. A table ends with {0}. */
typedef struct { const char *name; Fast call; } Function;
typedef struct { const char *name; PyType_Spec *spec; size_t type; /* its place in the state */ } Class;

extern const Function poller_functions[], receive_functions[], send_functions[];
extern const Class field_classes[];

/* Names that are looked up in Python objects. */
enum { N_AWAKE, N_BROKEN, N_CHECK_IDLE, N_CONNECTIONS, N_EPOLL_FD, N_ON_READABLE, N_ON_WRITABLE, N_REACH_END,
       N_SEND_REST, N_SPIN_LIMIT, N_SPUN, N_UNWATCH, N_WATCH, N_CLOSE, N_THROW, NAMES };

#define FREE_OPERATIONS 32
#define CHUNK 65536 /* connections/connection.py */

/* Everything that is kept between calls: one for each interpreter, as PEP 630 asks. */
struct State {
    PyTypeObject *method, *operation;
    PyTypeObject *waiter, *connection; /* fields.c */
    PyTypeObject *seen_waiter, *seen_connection; /* the last subclass of each that was met */
    PyObject *names[NAMES];
    PyObject *end_of_stream;
    PyObject *blocked; /* ("blocked",): the keyword of _send_rest() */
    PyCFunction recv, send; /* what implements socket.recv and socket.send */
    struct Operation *free[FREE_OPERATIONS];
    int free_count;
    PyObject *stop; /* operation.c, stop_with() */
    char *scratch;  /* CHUNK bytes, where small receives land; nothing that was received stays there */
};

/* fields.c: the structs behind Python classes, under the same names */

typedef struct {
    PyObject_HEAD
    PyObject *action, *context, *get_loop, *loop, *result, *wakeup;
    char blocking, busy;
} Waiter;

typedef struct {
    PyObject_HEAD
    PyObject *buffer, *poller, *reading, *recv, *send, *watching;
    long long answered, bytes_received, bytes_sent, idle_read;
    long long message_sent, message_at; /* _message_start */
    unsigned events;
    int fd, spins;
    char shared;
    char large; /* the last receive took much: the next one may need room, and time */
} Connection;

#define connection_spun(state, self) is_true(PyObject_CallMethodNoArgs((PyObject *)(self), (state)->names[N_SPUN]))

/* method.c */
extern PyType_Spec method_spec;
PyObject *method_new(PyObject *module, PyObject *pure, Fast call);

/* For arguments that the C code leaves to Python. */
#define call_pure(pure, args, nargs, names) PyObject_Vectorcall(pure, args, (size_t)(nargs), names)

/* operation.c: what `receive()` and `send()` return, and a task awaits */

typedef struct Operation Operation;
enum { FRESH, WAITING, PAUSED, DELEGATED, DONE };

/* Go on; `was` is the state it had. */
typedef PySendResult (*Step)(State *state, Operation *self, int was, PyObject **result);

struct Operation {
    PyObject_HEAD
    Step step;
    PyObject *pure;     /* the Python function whose work this is */
    PyObject *args[4];  /* what it was called with; the first is the connection */
    Py_ssize_t nargs;
    PyObject *keywords; /* their names, as in PEP 590 */
    Waiter *waiter;     /* where it waits */
    PyObject *delegate; /* the awaitable that does the rest */
    PyObject *end;      /* receive: what the end of the stream raises */
    Py_ssize_t max;     /* receive: bytes; receive_until: bytes to search */
    char state;
    char warns;         /* about never having been awaited */
};

extern PyType_Spec operation_spec;
Operation *operation_new(State *state, Step step, PyObject *pure, PyObject *const *args, Py_ssize_t nargs,
                         PyObject *keywords);
PySendResult operation_wait(Operation *self, Waiter *waiter, PyObject **result);
PySendResult operation_pause(Operation *self, Waiter *waiter, PyObject **result);
PySendResult operation_return(Operation *self, PyObject *value, PyObject **result);
PySendResult operation_fail(Operation *self);
PySendResult operation_delegate(Operation *self, PyObject *awaitable, PyObject **result);
PySendResult operation_leave_to_pure(Operation *self, PyObject **result);
PySendResult operation_raised(State *state, Operation *self, PyObject **result);
void operations_forget(State *state);

/* The truth of a new reference, or -1 for NULL. */
static inline int
is_true(PyObject *value)
{
    int truth = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return truth;
}

/* Whether a new reference is NULL: an error. */
static inline int
failed(PyObject *value)
{
    Py_XDECREF(value);
    return value == NULL;
}

/* Whether an object has a struct of fields.c. Mostly it is of the class that the last one had: no look at its bases. */
static inline int
has_struct(PyObject *object, PyTypeObject *base, PyTypeObject **seen)
{
    if (object == NULL || base == NULL)
        return 0;
    if (Py_IS_TYPE(object, *seen))
        return 1;
    if (!PyObject_TypeCheck(object, base))
        return 0;
    Py_XSETREF(*seen, (PyTypeObject *)Py_NewRef(Py_TYPE(object)));
    return 1;
}

#define is_waiter(state, object) has_struct(object, (state)->waiter, &(state)->seen_waiter)
#define is_connection(state, object) has_struct(object, (state)->connection, &(state)->seen_connection)

/* Whether a state of a connection (connections/states.py) is the socket's own method: no TLS, no drain, not closed.
 * A program that has the socket may have closed it, and its number may be another's: then Python asks the socket. */
static inline int
is_plain(Connection *self, PyObject *now, PyCFunction method)
{
    return now != NULL && PyCFunction_CheckExact(now) && PyCFunction_GET_FUNCTION(now) == method && !self->shared;
}

#if PY_VERSION_HEX < 0x030C0000
/* As Python 3.12 has them. */
static inline PyObject *
PyErr_GetRaisedException(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (type == NULL)
        return NULL;
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    Py_DECREF(type);
    Py_XDECREF(traceback);
    return value;
}

static inline void
PyErr_SetRaisedException(PyObject *value)
{
    if (value != NULL)
        PyErr_Restore(Py_NewRef(Py_TYPE(value)), value, PyException_GetTraceback(value));
    else
        PyErr_Clear();
}
#endif

#endif
