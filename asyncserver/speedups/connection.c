/* Connection: the struct behind ConnectionFields (connections/fields.py); how one comes in.
 *
 * Theory of operation. Of what accept(2) gives only the descriptor and the name are kept. The socket's object is made
 * when somebody asks for `_sock`, which mostly nobody does; the address is made anew each time. A state that is NULL is
 * the socket's own method; asked for, it is a method of the connection that has the object made and calls it. That one
 * is never kept: it would be a cycle.
 */
#include "speedups.h"
#include <unistd.h>

#define ALL_OBJECTS(X) CONNECTION_OBJECTS(X) CONNECTION_OPTIONS(X) CONNECTION_LAZY(X)
#define IS_LEFT(self) (self->fd >= 0 && self->sock == NULL) /* nobody has closed it */
LIFE(Connection, connection, ALL_OBJECTS, if (IS_LEFT(self)) close((int)self->fd); self->fd = -1)

PyObject *connection_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(names)) {
    Connection *self = (Connection *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->fd = -1;
        self->watching = Py_NewRef(Py_None);
    }
    return (PyObject *)self;
}

/* -- what is made when somebody asks for it */

/* NULL, with an exception, when the interpreter ends. */
static State *state_of(Connection *self) {
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &module_definition);
    return module == NULL ? NULL : PyModule_GetState(module);
}

static PyObject *get_lazy(Connection *self, void *place) {
    PyObject *value = *(PyObject **)((char *)self + (size_t)place);
    int sends = (size_t)place == offsetof(Connection, send);
    if (value != NULL)
        return Py_NewRef(value);
    if ((size_t)place == offsetof(Connection, peer))
        return address_of(&self->name);
    State *state = state_of(self);
    if (state == NULL)
        return NULL;
    if ((size_t)place == offsetof(Connection, sock))
        return PyObject_CallMethodNoArgs((PyObject *)self, state->_make_sock);
    if (self->sock != NULL)
        return PyObject_GetAttr(self->sock, sends ? state->send : state->recv);
    return PyObject_GetAttr((PyObject *)self, sends ? state->_send_by_sock : state->_recv_by_sock);
}

static int set_lazy(Connection *self, PyObject *value, void *place) {
    if (value != NULL && PyMethod_Check(value) && PyMethod_GET_SELF(value) == (PyObject *)self &&
        PyFunction_Check(PyMethod_GET_FUNCTION(value))) {
        State *state = state_of(self);
        PyObject *name = ((PyFunctionObject *)PyMethod_GET_FUNCTION(value))->func_name;
        if (state == NULL)
            return -1;
        if (name == state->_recv_by_sock || name == state->_send_by_sock)
            value = NULL;
    }
    Py_XSETREF(*(PyObject **)((char *)self + (size_t)place), Py_XNewRef(value));
    return 0;
}

/* Its socket closes it, and warns; where a subclass has a __del__ in the place of this, connection_clear() closes. */
static void connection_finalize(Connection *self) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (IS_LEFT(self) && failed(get_lazy(self, (void *)offsetof(Connection, sock))))
        PyErr_WriteUnraisable((PyObject *)self);
    PyErr_Restore(type, value, traceback);
}

#define LAZY(field, name) {name, (getter)get_lazy, (setter)set_lazy, NULL, (void *)offsetof(Connection, field)},
static PyGetSetDef getset[] = {CONNECTION_LAZY(LAZY){0}};

#define MEMBER(field, name) {name, T_OBJECT_EX, offsetof(Connection, field), 0, NULL},
#define OPTION(field, name) {name, T_OBJECT, offsetof(Connection, field), 0, NULL}, /* NULL is None */
#define NUMBER(field, name) {name, T_LONGLONG, offsetof(Connection, field), 0, NULL},
static PyMemberDef connection_members[] = {
    CONNECTION_OBJECTS(MEMBER)
    CONNECTION_OPTIONS(OPTION)
    CONNECTION_NUMBERS(NUMBER)
    {"_shared", T_BOOL, offsetof(Connection, shared), 0, NULL},
    {"_made_sock", T_OBJECT, offsetof(Connection, sock), READONLY, NULL},
    {0},
};

static PyType_Slot slots[] = {
    SLOTS(connection, connection_new, "What a connection keeps."), {Py_tp_finalize, connection_finalize},
    {Py_tp_getset, getset}, {0, NULL},
};
PyType_Spec connection_spec = {
    "asyncserver.connections.fields.ConnectionFields", sizeof(Connection), 0, FLAGS, slots,
};

/* -- how it comes in */

/* Accepted._accept(listening, kind) */
PyObject *accept_next(State *state, PyObject *pure, PyObject *const *args, Py_ssize_t nargs) {
    Connection *self = (Connection *)args[0];
    Name name = {.any = {0}};
    socklen_t size = sizeof name;
    int listening = Py_IS_TYPE(args[1], (PyTypeObject *)state->socket) ? PyObject_AsFileDescriptor(args[1]) : -1;
    if (listening < 0) { /* another kind; or it is closed, and Python's error is the system's, which a listener expects */
        PyErr_Clear();
        return call_pure(pure, args, nargs);
    }
    int fd = accept4(listening, &name.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        Py_RETURN_FALSE;
    if (fd < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    self->fd = fd;
    self->name = name;
    Py_XSETREF(self->kind, Py_NewRef(args[2]));
    if (name.any.sa_family == AF_INET || name.any.sa_family == AF_INET6)
        Py_RETURN_TRUE;
    self->peer = PyUnicode_FromString(""); /* what most Unix sockets are called */
    if (self->peer != NULL && size > sizeof name.any.sa_family) {
        PyObject *sock = get_lazy(self, (void *)offsetof(Connection, sock));
        Py_XSETREF(self->peer, sock == NULL ? NULL : PyObject_CallMethodNoArgs(sock, state->getpeername));
        Py_XDECREF(sock);
    }
    return self->peer == NULL ? NULL : Py_NewRef(Py_True);
}

/* Accepted._task_name() */
PyObject *name_task(State *Py_UNUSED(state), PyObject *pure, PyObject *const *args, Py_ssize_t nargs) {
    Connection *self = (Connection *)args[0];
    const unsigned char *host = (const unsigned char *)&self->name.in.sin_addr;
    char text[sizeof "tcp 255.255.255.255:65535"];
    if (self->peer != NULL || self->name.any.sa_family != AF_INET)
        return call_pure(pure, args, nargs);
    snprintf(text, sizeof text, "tcp %d.%d.%d.%d:%d", host[0], host[1], host[2], host[3], ntohs(self->name.in.sin_port));
    return PyUnicode_FromString(text);
}

/* An exception is set. The system's means that the connection is broken: `_broken()` sets the states that say so. */
int connection_broke(State *state, Connection *self) {
    if (!PyErr_ExceptionMatches(PyExc_OSError))
        return -1;
    PyObject *type, *exc, *traceback;
    PyErr_Fetch(&type, &exc, &traceback);
    PyErr_NormalizeException(&type, &exc, &traceback);
    int failure = failed(PyObject_CallMethodOneArg((PyObject *)self, state->_broken, exc));
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(traceback);
    return failure ? -1 : 0;
}

/* Count an operation that need not wait, by Connection._spun(); -1 with an exception. */
int spun(State *state, Connection *self) {
    PyObject *answer = PyObject_CallMethodNoArgs((PyObject *)self, state->_spun);
    int truth = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return truth;
}
