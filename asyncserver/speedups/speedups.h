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

/* What `accelerate()` finds, by the qualified name of the definition. A table ends with {0}. */
typedef struct { const char *name; Fast call; } Function;
typedef struct { const char *name; PyType_Spec *spec; size_t type; /* its place in the state */ } Class;

extern const Function life_functions[], poller_functions[], receive_functions[], send_functions[];
extern const Class datagram_classes[], field_classes[];

/* Names that are looked up in Python objects: N(awake) is one. */
#define NAMES(X)                                                                                                       \
    X(awake) X(close) X(refuse_closed) X(refuse_undelivered) X(throw) X(_SPIN_LIMIT) X(_broken) X(_check_idle_read)    \
    X(_connections) X(_epoll_fd) X(_on_readable) X(_on_writable) X(_reach_end) X(_recv) X(_release) X(_send_rest)      \
    X(_spun) X(_watch) X(watch) X(woken)
#define NAME_NUMBER(name) NAME_##name,
enum { NAMES(NAME_NUMBER) NAME_COUNT };
#define N(name) (state->names[NAME_##name])

/* Everything that is kept between calls: one for each interpreter, as PEP 630 asks. */
struct State {
    PyTypeObject *method, *operation;
    PyTypeObject *waiter, *connection;           /* fields.c */
    PyTypeObject *datagram, *ring, *batch;       /* datagrams.h */
    PyTypeObject *seen_waiter, *seen_connection; /* the last subclass of each that was met */
    PyObject *names[NAME_COUNT];
    PyObject *blocked; /* ("blocked",): the keyword of _send_rest() */
    PyObject *end_of_stream, *socket; /* anyio.EndOfStream, socket.socket */
    struct Operation *free[FREE_OPERATIONS];
    int free_count;
    PyObject *stop; /* operation.c, stop_with() */
    char *scratch;  /* ANY bytes, where small receives land */
};

/* What every type with a list of objects has; the list is an X macro. */
#define FIELD(field, name) PyObject *field;
#define VISIT(field, name) Py_VISIT(self->field);
#define CLEAR(field, name) Py_CLEAR(self->field);
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

int change_events(State *state, Connection *self, unsigned events); /* poller.c */

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
    char running; /* as no other may go on, or end it, meanwhile */
    char warns; /* about never having been awaited */
};

extern PyType_Spec operation_spec;
Operation *operation_new(State *state, Step step, PyObject *pure, PyObject *const *args, Py_ssize_t nargs,
                         PyObject *keywords);
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

/* Whether an object has a struct of fields.c. Mostly it is of the class that the last one had: no look at its bases. */
static inline int has_struct(PyObject *object, PyTypeObject *base, PyTypeObject **seen) {
    if (object == NULL || base == NULL)
        return 0;
    if (Py_IS_TYPE(object, *seen))
        return 1;
    if (!PyObject_TypeCheck(object, base))
        return 0;
    Py_XSETREF(*seen, (PyTypeObject *)Py_NewRef(Py_TYPE(object)));
    return 1;
}

/* Whether a task waits there, or has been woken and is about to run. */
static inline int is_busy(Waiter *self) {
    return self->wakeup != NULL && self->wakeup != Py_None;
}

#define is_waiter(state, object) has_struct(object, (state)->waiter, &(state)->seen_waiter)
#define is_connection(state, object) has_struct(object, (state)->connection, &(state)->seen_connection)

/* Whether a state of a connection (connections/states.py) is the socket's own method: no TLS, no drain, not closed.
 * A program that has the socket may have closed it, and its number may be another's: then Python asks the socket. */
static inline int is_plain(Connection *self, PyObject *now) {
    return !self->shared &&
           (now == NULL || (PyCFunction_CheckExact(now) && PyCFunction_GET_SELF(now) == self->sock));
}

/* Count an operation that need not wait: Connection._spun(). */
static inline int spun(State *state, Connection *self) {
    PyObject *answer = PyObject_CallMethodNoArgs((PyObject *)self, N(_spun));
    int truth = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return truth;
}

#endif
