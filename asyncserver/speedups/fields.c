/* The structs behind Python classes: WaiterFields (net/waiter.py), ConnectionFields (connections/fields.py).
 *
 * Theory of operation. The Python classes inherit from these and find the attributes under the names that they would
 * have had in __slots__; the methods stay theirs. So a Stream, a waiter and all states mean the same, compiled or not,
 * and the C code reaches in a load what costs Python a call. Attributes that C never uses stay in __slots__.
 */
#include "speedups.h"
#include <unistd.h>

/* -- Waiter */

LIFE(Waiter, waiter, WAITER_OBJECTS)

#define MEMBER(field, name) {name, T_OBJECT, offsetof(Waiter, field), 0, NULL}, /* NULL is None: no wake-up */
static PyMemberDef waiter_members[] = {
    WAITER_OBJECTS(MEMBER)
    {"_asyncio_future_blocking", T_BOOL, offsetof(Waiter, blocking), 0, NULL},
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Waiter, vectorcall), READONLY, NULL},
    {0},
};
#undef MEMBER

#define IS(name, text) \
    (PyUnicode_GET_LENGTH(name) == sizeof text - 1 && memcmp(PyUnicode_DATA(name), text, sizeof text - 1) == 0)

/* What a task asks for at each wait (Task.__step, asyncio/tasks.py) is found at once, all else as usual. */
PyObject *waiter_getattro(PyObject *self, PyObject *name) {
    if (!PyUnicode_CheckExact(name)) /* of `__getattribute__(waiter, 5)` */
        return PyObject_GenericGetAttr(self, name);
    if (IS(name, "_asyncio_future_blocking"))
        return PyBool_FromLong(((Waiter *)self)->blocking);
    if (IS(name, "get_loop") && ((Waiter *)self)->get_loop != NULL)
        return Py_NewRef(((Waiter *)self)->get_loop);
    if (IS(name, "add_done_callback") && Py_TYPE(self)->tp_base->tp_base == &PyBaseObject_Type) /* not overridden */
        return Py_NewRef(self); /* called, it does just that: no bound method is made for each wait */
    return PyObject_GenericGetAttr(self, name);
}

/* As Waiter.add_done_callback(callback, context=...). */
static PyObject *waiter_vectorcall(PyObject *waiter, PyObject *const *args, size_t nargsf, PyObject *names) {
    Waiter *self = (Waiter *)waiter;
    if (PyVectorcall_NARGS(nargsf) != 1 || names == NULL || PyTuple_GET_SIZE(names) != 1)
        return PyErr_Format(PyExc_TypeError, "add_done_callback() takes a callback, and context=");
    Py_XSETREF(self->wakeup, Py_NewRef(args[0]));
    Py_XSETREF(self->context, Py_NewRef(args[1]));
    Py_RETURN_NONE;
}

static PyObject *waiter_new(PyTypeObject *type, PyObject *args, PyObject *names) {
    Waiter *self = (Waiter *)PyType_GenericNew(type, args, names);
    if (self != NULL)
        self->vectorcall = waiter_vectorcall;
    return (PyObject *)self;
}

static int waiter_setattro(PyObject *self, PyObject *name, PyObject *value) {
    if (value != Py_False || !PyUnicode_CheckExact(name) || !IS(name, "_asyncio_future_blocking"))
        return PyObject_GenericSetAttr(self, name, value);
    ((Waiter *)self)->blocking = 0;
    return 0;
}

static PyType_Slot waiter_slots[] = {
    SLOTS_WITH(waiter, waiter_new, "What a waiter keeps."), {Py_tp_call, PyVectorcall_Call},
    {Py_tp_getattro, waiter_getattro}, {Py_tp_setattro, waiter_setattro}, {0, NULL},
};
PyType_Spec waiter_spec = {
    "asyncserver.net.waiter.WaiterFields", sizeof(Waiter), 0, FLAGS | Py_TPFLAGS_HAVE_VECTORCALL, waiter_slots,
};

/* -- Connection
 *
 * Of what accept(2) gives only the descriptor and the name are kept. The socket's object is made when somebody asks for
 * `_sock`, which mostly nobody does; the address is made anew each time. A state that is NULL is the socket's own
 * method; asked for, it is a function that has the socket's object made and calls it. That one is bound to the
 * connection, so it is never kept: a cycle.
 */

#define ALL_OBJECTS(X) CONNECTION_OBJECTS(X) CONNECTION_OPTIONS(X) CONNECTION_LAZY(X)
LIFE(Connection, fields, ALL_OBJECTS)

/* Whether a class has a method as it is compiled. */
static int has_ours(State *state, PyTypeObject *type, PyObject *name) {
    PyObject *found = PyObject_GetAttr((PyObject *)type, name);
    int ours = found != NULL && Py_IS_TYPE(found, state->method);
    Py_XDECREF(found);
    PyErr_Clear(); /* what is missing is none of ours */
    return ours;
}

/* Look once at a class that connections have; false if the object has no struct. */
int connection_meet(State *state, PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    if (!PyObject_TypeCheck(object, state->connection))
        return 0;
    state->wakes_readers = has_ours(state, type, N(_on_readable));
    int spins = has_ours(state, type, N(_spun));
    PyObject *limit = PyObject_GetAttr((PyObject *)type, N(_SPIN_LIMIT));
    state->spin_limit = limit != NULL && spins ? PyLong_AsLong(limit) : 0;
    Py_XDECREF(limit);
    PyErr_Clear();
    Py_XSETREF(state->seen, Py_NewRef(type));
    state->seen_version = type->tp_version_tag ? type->tp_version_tag : UINT_MAX; /* 0: it has none, look again */
    return 1;
}

static PyObject *connection_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs)) {
    Connection *self = (Connection *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->fd = -1;
        self->came_at = self->idle_read = self->idle_write = -1;
        self->watching = Py_NewRef(Py_None);
    }
    return (PyObject *)self;
}

static int connection_clear(Connection *self) {
    if (self->sock != NULL)
        self->fd = -1; /* the socket's object closes it */
    return fields_clear(self);
}

static void connection_dealloc(Connection *self) {
    PyObject_GC_UnTrack(self); /* a program that is warned may collect: it would end us again */
    if (self->fd >= 0 && self->sock == NULL) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        if (PyErr_ResourceWarning(NULL, 1, "unclosed connection, fd=%d", self->fd))
            PyErr_WriteUnraisable(NULL);
        PyErr_Restore(type, value, traceback);
        close(self->fd);
    }
    fields_dealloc(self);
}

/* The name is interned: CPython's method cache would keep a new string each time, and a slot for each (_PyType_Lookup,
 * Objects/typeobject.c: the hash is of the name's address). */
static PyObject *get_named(PyObject *object, const char *text) {
    PyObject *name = PyUnicode_InternFromString(text);
    PyObject *value = name == NULL ? NULL : PyObject_GetAttr(object, name);
    Py_XDECREF(name);
    return value;
}

static PyObject *get_sock(Connection *self, void *Py_UNUSED(closure)) {
    if (self->sock != NULL)
        return Py_NewRef(self->sock);
    PyObject *make = get_named((PyObject *)self, "_make_sock"), *sock = make == NULL ? NULL : PyObject_CallNoArgs(make);
    Py_XDECREF(make);
    return sock;
}

static PyObject *call_sock(Connection *self, const char *name, PyObject *arg) {
    PyObject *sock = get_sock(self, NULL), *method = sock == NULL ? NULL : get_named(sock, name);
    PyObject *result = method == NULL ? NULL : PyObject_CallOneArg(method, arg);
    Py_XDECREF(method);
    Py_XDECREF(sock);
    return result;
}

static PyObject *plain_recv(PyObject *self, PyObject *max) {
    return call_sock((Connection *)self, "recv", max);
}

static PyObject *plain_send(PyObject *self, PyObject *item) {
    return call_sock((Connection *)self, "send", item);
}

static PyMethodDef recv_method = {"recv", plain_recv, METH_O, NULL}, send_method = {"send", plain_send, METH_O, NULL};

/* A state. For NULL it is the socket's method, or what stands for it as long as there is no object. */
static PyObject *get_state(Connection *self, PyObject *state, PyMethodDef *plain) {
    if (state != NULL)
        return Py_NewRef(state);
    if (self->sock != NULL)
        return get_named(self->sock, plain->ml_name);
    return PyCFunction_New(plain, (PyObject *)self);
}

static PyObject *get_recv(Connection *self, void *Py_UNUSED(closure)) {
    return get_state(self, self->recv, &recv_method);
}

static PyObject *get_read(Connection *self, void *Py_UNUSED(closure)) {
    return get_state(self, self->read, &recv_method);
}

static PyObject *get_send(Connection *self, void *Py_UNUSED(closure)) {
    return get_state(self, self->send, &send_method);
}

static PyObject *get_peer(Connection *self, void *Py_UNUSED(closure)) {
    return self->peer == NULL ? address_of(&self->name) : Py_NewRef(self->peer);
}

static int set_lazy(Connection *self, PyObject *value, void *place) {
    if (value != NULL && PyCFunction_CheckExact(value) && PyCFunction_GET_SELF(value) == (PyObject *)self)
        value = NULL;
    Py_XSETREF(*(PyObject **)((char *)self + (size_t)place), Py_XNewRef(value));
    return 0;
}

static PyObject *get_message_start(Connection *self, void *Py_UNUSED(closure)) {
    return Py_BuildValue("(LL)", self->message_sent, self->message_at);
}

static int set_message_start(Connection *self, PyObject *value, void *Py_UNUSED(closure)) {
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_message_start cannot be deleted");
        return -1;
    }
    return PyArg_ParseTuple(value, "LL", &self->message_sent, &self->message_at) ? 0 : -1;
}

#define LAZY(field, name) {name, (getter)get_##field, (setter)set_lazy, NULL, (void *)offsetof(Connection, field)},
static PyGetSetDef connection_getset[] = {
    CONNECTION_LAZY(LAZY)
    {"_message_start", (getter)get_message_start, (setter)set_message_start, NULL, NULL},
    {0},
};

#define MEMBER(field, name) {name, T_OBJECT_EX, offsetof(Connection, field), 0, NULL},
#define OPTION(field, name) {name, T_OBJECT, offsetof(Connection, field), 0, NULL}, /* NULL is None */
#define NUMBER(field, name) {name, T_LONGLONG, offsetof(Connection, field), 0, NULL}
static PyMemberDef connection_members[] = {
    CONNECTION_OBJECTS(MEMBER)
    CONNECTION_OPTIONS(OPTION)
    NUMBER(answered, "_answered"),
    NUMBER(came_at, "_came_at"),
    NUMBER(idle_read, "_idle_read"),
    NUMBER(idle_write, "_idle_write"),
    NUMBER(bytes_received, "bytes_received"),
    NUMBER(bytes_sent, "bytes_sent"),
    {"_events", T_UINT, offsetof(Connection, events), 0, NULL},
    {"_fd", T_INT, offsetof(Connection, fd), 0, NULL},
    {"_spins", T_INT, offsetof(Connection, spins), 0, NULL},
    {"_shared", T_BOOL, offsetof(Connection, shared), 0, NULL},
    {"_tls", T_BOOL, offsetof(Connection, tls), 0, NULL},
    {0},
};

static PyType_Slot connection_slots[] = {
    {Py_tp_doc, "What a connection keeps."}, {Py_tp_new, connection_new},       {Py_tp_dealloc, connection_dealloc},
    {Py_tp_traverse, fields_traverse},       {Py_tp_clear, connection_clear},   {Py_tp_members, connection_members},
    {Py_tp_getset, connection_getset},       {0, NULL},
};
PyType_Spec connection_spec = {
    "asyncserver.connections.fields.ConnectionFields", sizeof(Connection), 0, FLAGS, connection_slots,
};
