/* What the files of the extension share. */
#ifndef SPEEDUPS_H
#define SPEEDUPS_H

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define CHUNK 65536       /* bytes, as in connections/connection.py */
#define ANY (CHUNK + 1)   /* what an iteration asks for, as in streams/receiving.py */
#define FREE_OPERATIONS 32

typedef struct State State;

/* Does the usual case of a Python function, and calls it, `pure`, for any other. Arguments as in PEP 590. */
typedef PyObject *(*Fast)(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names);

/* What Methods there are, by the qualified name of the Python function. A table ends with {0}. */
typedef struct { const char *name; Fast call; } Function;

extern const Function life_functions[], poller_functions[], post_functions[], receive_functions[], send_functions[];

/* Lists that are written once, for the struct, its life and what Python sees of it: X macros. */
#define FIELD(field, name) PyObject *field;
#define VISIT(field, name) Py_VISIT(self->field);
#define CLEAR(field, name) Py_CLEAR(self->field);

/* The types: of each its `_spec`, and its place in the state. */
#define TYPES(X) X(method) X(operation) X(waiter) X(connection) X(datagram)
#define TYPE_DECLARED(type) extern PyType_Spec type##_spec;
#define TYPE_FIELD(type) PyTypeObject *type;
TYPES(TYPE_DECLARED)

/* Names that are looked up in Python objects: N(awake) is one. */
#define NAMES(X)                                                                                                       \
    X(awake) X(close) X(throw) X(_SPIN_LIMIT) X(_broken) X(_check_idle_read) X(_connections)                           \
    X(_epoll_fd) X(_keep) X(_on_readable) X(_on_writable) X(_reach_end) X(_recv) X(_release) X(_send_rest) X(_spun)    \
    X(_watch) X(refuse_closed) X(refuse_undelivered) X(watch) X(woken)
#define NAME_FIELD(name) PyObject *name_##name;
#define N(name) (state->name_##name)

/* ("blocked",), the keyword of _send_rest(); `stop` see stop_with() in operation.c; the class of the connection that was
 * met last: see is_connection(). */
#define STATE_OBJECTS(X) X(blocked, ) X(end_of_stream, ) X(seen, ) X(socket, ) X(stop, )

/* Everything that is kept between calls: one for each interpreter, as PEP 630 asks. */
struct State {
    TYPES(TYPE_FIELD)
    NAMES(NAME_FIELD)
    STATE_OBJECTS(FIELD)
    unsigned seen_version;
    long spin_limit;        /* of the class `seen`; not above 0: it has its own `_spun()` */
    char wakes_readers;     /* it has no `_on_readable()` of its own */
    struct Operation *free[FREE_OPERATIONS];
    int free_count;
    char scratch[ANY]; /* where small receives land */
};

extern struct PyModuleDef module_definition;

#if PY_VERSION_HEX < 0x030C0000
/* Take the exception that is set, as Python 3.12 has it. */
static inline PyObject *PyErr_GetRaisedException(void) {
    PyObject *type, *exc, *traceback;
    PyErr_Fetch(&type, &exc, &traceback);
    PyErr_NormalizeException(&type, &exc, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(exc, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return exc;
}
#endif

/* What every type with a list of objects has. */
#define LIFE(Struct, prefix, LIST)                                                                                     \
    static int prefix##_traverse(Struct *self, visitproc visit, void *arg) {                                           \
        Py_VISIT(Py_TYPE(self));                                                                                       \
        LIST(VISIT)                                                                                                    \
        return 0;                                                                                                      \
    }                                                                                                                  \
    static int prefix##_clear(Struct *self) {                                                                          \
        LIST(CLEAR)                                                                                                    \
        return 0;                                                                                                      \
    }                                                                                                                  \
    static void prefix##_dealloc(Struct *self) {                                                                       \
        PyTypeObject *type = Py_TYPE(self);                                                                            \
        PyObject_GC_UnTrack(self);                                                                                     \
        prefix##_clear(self);                                                                                          \
        type->tp_free(self);                                                                                           \
        Py_DECREF(type);                                                                                               \
    }
#define SLOTS(prefix, doc) SLOTS_WITH(prefix, PyType_GenericNew, doc)
#define SLOTS_WITH(prefix, new, doc)                                                                                   \
    {Py_tp_doc, doc}, {Py_tp_new, new}, {Py_tp_traverse, prefix##_traverse},                                           \
        {Py_tp_clear, prefix##_clear}, {Py_tp_dealloc, prefix##_dealloc}, {Py_tp_members, prefix##_members}
#define FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE)

/* fields.c: the structs behind Python classes, under the same names */

#define WAITER_OBJECTS(X)                                                                                              \
    X(action, "_action") X(context, "context") X(get_loop, "get_loop") X(loop, "_loop") X(result, "result")            \
    X(wakeup, "wakeup")
#define CONNECTION_OBJECTS(X) X(poller, "_poller") X(reading, "_reading") X(watching, "_watching")
#define CONNECTION_OPTIONS(X) /* None, until they are something */                                                     \
    X(buffer, "_buffer") X(kind, "_kind") X(owed_until, "_owed_until") X(proxy_header, "proxy_header")                 \
    X(writing, "_writing")
#define CONNECTION_LAZY(X) X(recv, "_recv") X(read, "_read") X(send, "_send") X(sock, "_sock") X(peer, "peer_address")

/* An address as the kernel writes it. */
typedef union {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
} Name;

PyObject *address_of(const Name *name);

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    WAITER_OBJECTS(FIELD)
    char blocking;
} Waiter;

typedef struct {
    PyObject_HEAD
    CONNECTION_OBJECTS(FIELD)
    CONNECTION_OPTIONS(FIELD)
    CONNECTION_LAZY(FIELD)
    long long answered, bytes_received, bytes_sent, came_at, idle_read, idle_write;
    long long message_sent, message_at; /* _message_start */
    Name name; /* of the peer, until it gets another address */
    unsigned events;
    int fd, spins;
    char shared, tls;
    char large; /* the last receive took much, or (2) all that it could: the next one needs room, and time */
} Connection;

PyObject *waiter_getattro(PyObject *self, PyObject *name);
int connection_meet(State *state, PyObject *object);
int change_events(State *state, Connection *self, unsigned events); /* poller.c */

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
    PyObject *args[4];  /* what it was called with, to be called with again; the first is the connection */
    Py_ssize_t nargs;
    Waiter *waiter;     /* where it waits */
    PyObject *delegate; /* the awaitable that does the rest */
    Py_ssize_t max;     /* receive: bytes; receive_until: bytes to search */
    char state;
    char running; /* as no other may go on, or end it, meanwhile */
    char warns; /* about never having been awaited */
};

PyObject *operation_new(State *state, Step step, PyObject *pure, PyObject *const *args, Py_ssize_t nargs,
                        Py_ssize_t max);
PySendResult operation_wait(Operation *self, Waiter *waiter, PyObject **result);
PySendResult operation_pause(State *state, Operation *self, Waiter *waiter, PyObject **result);
PySendResult operation_return(Operation *self, PyObject *value, PyObject **result);
PySendResult operation_fail(Operation *self);
PySendResult operation_delegate(Operation *self, PyObject *awaitable, PyObject **result);
PySendResult operation_leave_to_pure(Operation *self, PyObject **result);
PySendResult operation_raised(State *state, Operation *self, PyObject **result);
void operations_forget(State *state);

/* Whether a new reference is NULL: an error. */
static inline int failed(PyObject *value) {
    Py_XDECREF(value);
    return value == NULL;
}

/* Whether a task waits there, or has been woken and is about to run. */
static inline int is_busy(Waiter *self) {
    return self->wakeup != NULL && self->wakeup != Py_None;
}

/* Whether an object has the struct of a Waiter: all its subclasses inherit the function, and nobody else. */
static inline int is_waiter(PyObject *object) {
    return object != NULL && Py_TYPE(object)->tp_getattro == waiter_getattro;
}

/* Whether an object has the struct of a Connection. Then the state knows its class. Mostly that is the class of the
 * last one, and nobody has changed it or its bases since: then its version is the same. */
static inline int is_connection(State *state, PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    return ((PyObject *)type == state->seen && type->tp_version_tag == state->seen_version) ||
           connection_meet(state, object);
}

/* Whether a state of a connection (connections/states.py) is the socket's own method: no TLS, no drain, not closed.
 * A program that has the socket may have closed it, and its number may be another's: then Python asks the socket. */
static inline int is_plain(Connection *self, PyObject *now) {
    return !self->shared &&
           (now == NULL || (PyCFunction_CheckExact(now) && PyCFunction_GET_SELF(now) == self->sock));
}

/* Count an operation that need not wait, as Connection._spun(); -1 with an exception. */
static inline int spun(State *state, Connection *self) {
    if (is_connection(state, (PyObject *)self) && state->spin_limit > 0) {
        self->spins = self->spins + 1 < state->spin_limit ? self->spins + 1 : 0;
        return self->spins == 0;
    }
    PyObject *answer = PyObject_CallMethodNoArgs((PyObject *)self, N(_spun));
    int truth = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return truth;
}

#endif
