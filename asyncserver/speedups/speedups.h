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

#define CHUNK 65536     /* bytes, as in connections/connection.py */
#define ANY (CHUNK + 1) /* what an iteration asks for, as in streams/receiving.py */

typedef struct State State;

/* Does the usual case of a Python function, and calls that, `pure`, for any other. */
typedef PyObject *Fast(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs);

/* The functions that there are: C name, the Python function's, how many arguments the usual case has at least and at
 * most, and whether the first must be a Connection. */
#define FUNCTIONS(X)                                                                                                   \
    X(accept_next, "Accepted._accept", 3, 3, 1)                                                                        \
    X(name_task, "Accepted._task_name", 1, 1, 1)                                                                       \
    X(next_chunk, "Receiving._chunk", 1, 4, 1)                                                                         \
    X(on_ready, "Poller._on_ready", 1, 1, 0)                                                                           \
    X(post, "Sending.post", 2, 2, 1)                                                                                   \
    X(post_to_all, "post_to_all", 3, 3, 0)                                                                             \
    X(receive, "Receiving.receive", 1, 2, 1)                                                                           \
    X(receive_until, "Receiving.receive_until", 3, 3, 1)                                                               \
    X(send_item, "Sending.send", 2, 2, 1)
#define FUNCTION_DECLARED(call, ...) Fast call;
FUNCTIONS(FUNCTION_DECLARED)

#define call_pure(pure, args, nargs) PyObject_Vectorcall(pure, args, (size_t)(nargs), NULL)

/* Lists that are written once, for the struct, its life and what Python sees of it: X macros. */
#define FIELD(field, name) PyObject *field;
#define NUMBER_FIELD(field, name) long long field;
#define VISIT(field, name) Py_VISIT(self->field);
#define CLEAR(field, name) Py_CLEAR(self->field);

/* Names that are looked up in Python objects. */
#define NAMES(X)                                                                                                       \
    X(awake, ) X(close, ) X(getpeername, ) X(recv, ) X(run, ) X(send, ) X(throw, ) X(_broken, ) X(_connections, )      \
    X(_epoll_fd, ) X(_keep, ) X(_make_sock, ) X(_on_readable, ) X(_on_writable, ) X(_reach_end, ) X(_recv, )           \
    X(_recv_by_sock, ) X(_send_by_sock, ) X(_send_rest, ) X(_spun, ) X(_watch_for_bytes, )
/* For `stop` see stop_with() in operation.c. */
#define STATE_OBJECTS(X) NAMES(X) X(end_of_stream, ) X(operation, ) X(socket, ) X(stop, )

/* Everything that is kept between calls: one for each interpreter, as PEP 630 asks. */
struct State {
    STATE_OBJECTS(FIELD)
    char scratch[ANY]; /* where small receives land */
};

extern struct PyModuleDef module_definition;
extern PyType_Spec connection_spec, datagram_spec, method_spec, operation_spec, waiter_spec;

/* What every type with a list of objects has; `first` is done before they are given up. */
#define LIFE(Struct, prefix, LIST, first)                                                                              \
    static int prefix##_traverse(Struct *self, visitproc visit, void *arg) {                                           \
        Py_VISIT(Py_TYPE(self));                                                                                       \
        LIST(VISIT)                                                                                                    \
        return 0;                                                                                                      \
    }                                                                                                                  \
    static int prefix##_clear(Struct *self) {                                                                          \
        first; LIST(CLEAR)                                                                                             \
        return 0;                                                                                                      \
    }                                                                                                                  \
    static void prefix##_dealloc(Struct *self) {                                                                       \
        PyTypeObject *type = Py_TYPE(self);                                                                            \
        PyObject_GC_UnTrack(self);                                                                                     \
        prefix##_clear(self);                                                                                          \
        type->tp_free(self);                                                                                           \
        Py_DECREF(type);                                                                                               \
    }
#define SLOTS(prefix, new, doc)                                                                                        \
    {Py_tp_doc, doc}, {Py_tp_new, new}, {Py_tp_traverse, prefix##_traverse},                                           \
        {Py_tp_clear, prefix##_clear}, {Py_tp_dealloc, prefix##_dealloc}, {Py_tp_members, prefix##_members}
#define FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE)

/* waiter.c, connection.c: the structs behind Python classes, under the same names */

#define WAITER_OBJECTS(X)                                                                                              \
    X(action, "_action") X(context, "context") X(get_loop, "get_loop") X(result, "result") X(wakeup, "wakeup")
#define CONNECTION_OBJECTS(X) X(reading, "_reading") X(watching, "_watching")
#define CONNECTION_OPTIONS(X) /* None, until they are something */                                                     \
    X(buffer, "_buffer") X(kind, "_kind") X(owed_until, "_owed_until")
#define CONNECTION_NUMBERS(X)                                                                                          \
    X(answered, "_answered") X(bytes_received, "bytes_received") X(bytes_sent, "bytes_sent") X(fd, "_fd")              \
    X(message_sent, "_message_sent") X(message_at, "_message_at")
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
    CONNECTION_NUMBERS(NUMBER_FIELD)
    Name name; /* of the peer, until it gets another address */
    char shared;
    char large; /* the last receive took much, or (2) all that it could: the next one needs room, and time */
} Connection;

PyObject *waiter_getattro(PyObject *self, PyObject *name);
PyObject *connection_new(PyTypeObject *type, PyObject *args, PyObject *names);
int connection_broke(State *state, Connection *self);
int spun(State *state, Connection *self);

/* operation.c: what `receive()` and `send()` return, and a task awaits */

#define OPERATION_OBJECTS(X) X(pure, ) X(args[0], ) X(args[1], ) X(args[2], ) X(args[3], ) X(delegate, ) X(waiter, )

typedef struct Operation Operation;
enum { FRESH, PAUSED, WAITING, DELEGATED, DONE };

/* Go on; `was` is the state it had. */
typedef PySendResult Step(State *state, Operation *self, int was, PyObject **result);

struct Operation {
    PyObject_HEAD
    Step *step;
    PyObject *pure;     /* the Python function whose work this is */
    PyObject *args[4];  /* what it was called with, to be called with again; the first is the connection */
    Py_ssize_t nargs;
    PyObject *delegate; /* the awaitable that does the rest */
    Waiter *waiter;     /* where it waits */
    Py_ssize_t max;     /* receive: bytes; receive_until: bytes to search */
    char state;
    char running; /* as no other may go on, or end it, meanwhile */
    char warns;   /* about never having been awaited */
};

PyObject *operation_new(State *state, Step *step, PyObject *pure, PyObject *const *args, Py_ssize_t nargs,
                        Py_ssize_t max);
PySendResult operation_wait(Operation *self, Waiter *waiter, PyObject **result);
PySendResult operation_pause(Operation *self, Waiter *waiter, PyObject **result);
PySendResult operation_return(Operation *self, PyObject *value, PyObject **result);
PySendResult operation_delegate(Operation *self, PyObject *awaitable, PyObject **result);
PySendResult operation_leave_to_pure(Operation *self, PyObject **result);
PySendResult operation_raised(State *state, Operation *self, PyObject **result);

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

/* The same for a Connection, unless a subclass has a __new__ of its own. */
static inline int is_connection(PyObject *object) {
    return Py_TYPE(object)->tp_new == connection_new;
}

/* Whether a state of a connection (connections/states.py) is the socket's own method: no TLS, no drain, not closed.
 * A program that has the socket may have closed it, and its number may be another's: then Python asks the socket. */
static inline int is_plain(Connection *self, PyObject *now) {
    return !self->shared &&
           (now == NULL || (PyCFunction_CheckExact(now) && PyCFunction_GET_SELF(now) == self->sock));
}

#endif
