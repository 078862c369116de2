/* Life: how a connection comes in, and how it goes. */
#include "speedups.h"
#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/un.h>
#include <unistd.h>

/* What a Unix peer is called: mostly nothing. */
static PyObject *unix_name(const struct sockaddr_un *name, socklen_t size) {
    Py_ssize_t length = (Py_ssize_t)size - (Py_ssize_t)offsetof(struct sockaddr_un, sun_path);
    if (length > 0 && name->sun_path[0] == 0) /* "abstract", unix(7) */
        return PyBytes_FromStringAndSize(name->sun_path, length);
    return PyUnicode_DecodeFSDefault(name->sun_path);
}

/* Whether we know how to write addresses of this kind of socket: family, type, protocol. */
static int is_known(PyObject *kind) {
    if (!PyTuple_CheckExact(kind) || PyTuple_GET_SIZE(kind) != 3 || !PyLong_Check(PyTuple_GET_ITEM(kind, 0)))
        return 0;
    int overflow;
    long family = PyLong_AsLongAndOverflow(PyTuple_GET_ITEM(kind, 0), &overflow);
    return family == AF_INET || family == AF_INET6 || family == AF_UNIX;
}

/* Accepted._accept(listening, kind) */
static PyObject *accept_next(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    if (nargs != 3 || names != NULL || !is_connection(state, args[0]) ||
        !Py_IS_TYPE(args[1], (PyTypeObject *)state->socket) || !is_known(args[2]))
        return call_pure(pure, args, nargs, names);
    Connection *self = (Connection *)args[0];
    union {
        Name name;
        struct sockaddr_un unix_;
        struct sockaddr_storage all;
    } from = {.all = {0}};
    socklen_t size = sizeof from;
    int listening = PyObject_AsFileDescriptor(args[1]);
    if (listening < 0) { /* closed: Python's error is the system's, which a listener expects */
        PyErr_Clear();
        return call_pure(pure, args, nargs, names);
    }
    int fd = accept4(listening, &from.name.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        Py_RETURN_FALSE;
    if (fd < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    self->fd = fd;
    self->name = from.name;
    Py_XSETREF(self->kind, Py_NewRef(args[2]));
    if (from.name.any.sa_family == AF_UNIX && (self->peer = unix_name(&from.unix_, size)) == NULL) {
        close(fd);
        self->fd = -1;
        return NULL;
    }
    Py_RETURN_TRUE;
}

/* Accepted._task_name() */
static PyObject *task_name(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    Connection *self = nargs == 1 && names == NULL && is_connection(state, args[0]) ? (Connection *)args[0] : NULL;
    char text[sizeof "tcp 255.255.255.255:65535"];
    if (self == NULL || self->peer != NULL || self->name.any.sa_family != AF_INET)
        return call_pure(pure, args, nargs, names);
    const unsigned char *host = (const unsigned char *)&self->name.in.sin_addr;
    snprintf(text, sizeof text, "tcp %d.%d.%d.%d:%d", host[0], host[1], host[2], host[3], ntohs(self->name.in.sin_port));
    return PyUnicode_FromString(text);
}

/* Connection._release(), when no task waits. */
static PyObject *release(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    Connection *self = nargs == 1 && names == NULL && is_connection(state, args[0]) ? (Connection *)args[0] : NULL;
    if (self == NULL || !is_waiter(self->reading) || is_busy((Waiter *)self->reading) ||
        (self->writing != NULL && self->writing != Py_None) || self->events & EPOLLRDHUP || !PyFunction_Check(pure))
        return call_pure(pure, args, nargs, names);
    PyObject *closed = PyDict_GetItemWithError(PyFunction_GetGlobals(pure), N(refuse_closed));
    PyObject *undelivered = PyDict_GetItemWithError(PyFunction_GetGlobals(pure), N(refuse_undelivered));
    if (closed == NULL || undelivered == NULL)
        return PyErr_Occurred() ? NULL : call_pure(pure, args, nargs, names);
    Py_XSETREF(self->watching, Py_NewRef(Py_False));
    if (change_events(state, self, 0))
        return NULL;
    self->fd = -1;
    Py_XSETREF(self->recv, Py_NewRef(closed));
    Py_XSETREF(self->read, Py_NewRef(closed));
    if (self->send != undelivered)
        Py_XSETREF(self->send, Py_NewRef(closed));
    Py_RETURN_NONE;
}

/* Connection._close() */
static PyObject *close_now(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    Connection *self = nargs == 1 && names == NULL && is_connection(state, args[0]) ? (Connection *)args[0] : NULL;
    if (self == NULL || self->sock != NULL || self->fd < 0)
        return call_pure(pure, args, nargs, names);
    int fd = self->fd, failure = failed(PyObject_CallMethodNoArgs(args[0], N(_release)));
    if (self->sock == NULL && self->fd < 0)
        close(fd);
    else if (!failure && self->sock != NULL)
        failure = failed(PyObject_CallMethodNoArgs(self->sock, N(close)));
    return failure ? NULL : Py_NewRef(Py_None);
}

const Function life_functions[] = {
    {"Accepted._accept", accept_next},
    {"Accepted._task_name", task_name},
    {"Connection._close", close_now},
    {"Connection._release", release},
    {0},
};
